"""What tests of the pytest plugin share: a test that uses the server."""

USES_THE_SERVER = """
    import socket

    def test_it(rethinkdb_server):
        print("kind:", rethinkdb_server.kind, rethinkdb_server)
        with socket.create_connection((rethinkdb_server.host, rethinkdb_server.port), 5) as connection:
            connection.sendall(bytes.fromhex("c3bdc234"))
            assert b'"success"' in connection.recv(1000)
"""
