"""A small JSON API over a pool that is opened in start-up and closed in clean-up: python examples/aiohttp_app.py

    curl localhost:8080/health
    curl -X POST localhost:8080/heroes -d '{"name": "Ana"}'
    curl localhost:8080/heroes

It needs the extra: pip install 'async-repool[aiohttp]'. RETHINKDB_URL names the server; the default is localhost:28015.
SIGTERM ends the program after it has answered the requests in flight.
"""

import argparse
import asyncio
import logging
import os
from typing import Any

from aiohttp import web

from async_repool import AsyncConnectionPool, ConnectFailed, PoolException, R

DB = "aiohttp_example"
POOL: web.AppKey[AsyncConnectionPool] = web.AppKey("pool", AsyncConnectionPool)
heroes = R.db(DB).table("heroes")
log = logging.getLogger("aiohttp_app")


async def open_pool(app: web.Application) -> None:
    pool = app[POOL]
    await pool.init_pool()
    if not await pool.run(R.db_list().contains(DB)):
        await pool.run(R.db_create(DB))
    if "heroes" not in await pool.run(R.db(DB).table_list()):
        await pool.run(R.db(DB).table_create("heroes"))
    await pool.run(heroes.wait())


async def close_pool(app: web.Application) -> None:
    await app[POOL].close(timeout=10)


async def list_heroes(request: web.Request) -> web.Response:
    # A read may be sent again if its connection is lost.
    return web.json_response(await request.app[POOL].run(heroes.limit(100), timeout=5, retry=True))


async def get_hero(request: web.Request) -> web.Response:
    hero = await request.app[POOL].run(heroes.get(request.match_info["id"]), timeout=5, retry=True)
    if hero is None:
        raise web.HTTPNotFound(text="no such hero")
    return web.json_response(hero)


async def add_hero(request: web.Request) -> web.Response:
    try:
        hero = await request.json()
    except ValueError:
        hero = None
    if not isinstance(hero, dict):
        raise web.HTTPBadRequest(text="send a hero as a JSON object")
    async with asyncio.timeout(5), request.app[POOL].connect() as conn:  # for several queries in a row, say
        result = await heroes.insert(hero).run(conn)
    if result["errors"]:  # there is a hero with this id already, or the id cannot be one
        raise web.HTTPConflict(text=result["first_error"].partition("\n")[0])
    return web.json_response({"id": result.get("generated_keys", [hero.get("id")])[0]}, status=201)


async def health(request: web.Request) -> web.Response:
    """200 if a query is answered within a second, else 503 and the reason. Both have the pool's gauges."""
    pool = request.app[POOL]
    status, problem = 200, None
    try:
        await pool.run(R.expr(1), timeout=1)
    except (TimeoutError, PoolException, R.ReqlError) as error:
        log.warning("not healthy: %s", error)
        status, problem = 503, type(error).__name__
    stats = pool.stats()
    gauges = {"size": stats.size, "idle": stats.idle, "leased": stats.leased, "shared": stats.shared}
    gauges |= {"queries": stats.queries_in_flight, "waiting": stats.waiting}
    return web.json_response({"problem": problem, **gauges}, status=status)


@web.middleware
async def overload_is_503(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except (TimeoutError, ConnectFailed) as error:
        log.warning("%s %s: %s", request.method, request.path, error)  # for the log, not for the client
        raise web.HTTPServiceUnavailable(text="busy, try again", headers={"Retry-After": "1"}) from error
    return response


def make_app(connect_arguments: dict[str, Any]) -> web.Application:
    app = web.Application(middlewares=[overload_is_503])
    app[POOL] = AsyncConnectionPool(connect_arguments, pool_size=10, min_size=2, acquire_timeout=5, name="api")
    app.on_startup.append(open_pool)
    app.on_cleanup.append(close_pool)
    app.add_routes(
        [
            web.get("/health", health),
            web.get("/heroes", list_heroes),
            web.post("/heroes", add_hero),
            web.get("/heroes/{id}", get_hero),
        ]
    )
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080, help="where to listen")
    port = parser.parse_args().port
    url = os.environ.get("RETHINKDB_URL") or "rethinkdb://localhost:28015"
    web.run_app(make_app({"url": url}), host="127.0.0.1", port=port, shutdown_timeout=10)
