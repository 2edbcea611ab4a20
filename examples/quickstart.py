"""A pool of 3 connections serves 400 users and a changefeed: python examples/quickstart.py [--host HOST] [--port PORT]

It uses the server that its arguments or RETHINKDB_URL name (rethinkdb://user:password@host:port). If nothing names one,
it uses the stand-in server.
"""

import argparse
import asyncio
import os
from contextlib import AsyncExitStack
from typing import Any

from async_repool import AsyncConnectionPool, FeedGap, R
from async_repool.testing import StandInServer

HEROES = [{"id": n, "name": f"hero {n}", "power": n % 10} for n in range(100)]
heroes = R.db("quickstart").table("heroes")


async def prepare(pool: AsyncConnectionPool) -> None:
    if await pool.run(R.db_list().contains("quickstart")):
        await pool.run(R.db_drop("quickstart"))
    await pool.run(R.db_create("quickstart"))
    await pool.run(R.db("quickstart").table_create("heroes"))
    await pool.run(heroes.wait())
    print("loaded", (await pool.run(heroes.insert(HEROES)))["inserted"], "heroes")


async def user(pool: AsyncConnectionPool, number: int) -> str:
    hero: dict[str, Any] = await pool.run(heroes.get(number % len(HEROES)))  # shares a connection
    return hero["name"]


async def leasing_user(pool: AsyncConnectionPool, number: int) -> str:
    async with pool.connect() as conn:  # waits in line for a connection that nobody else uses
        hero: dict[str, Any] = await heroes.get(number % len(HEROES)).run(conn)
        return hero["name"]


async def follow(pool: AsyncConnectionPool, is_following: asyncio.Event, wanted: int) -> list[str]:
    seen: list[str] = []
    async with pool.changes(heroes.changes()) as feed:  # is opened again if its connection is lost
        is_following.set()
        async for change in feed:
            if isinstance(change, FeedGap):
                print(f"the changefeed was broken for {change.seconds} s")
                continue
            seen.append(change["new_val"]["name"])
            if len(seen) == wanted:
                break
    return seen


async def main(arguments: dict[str, Any]) -> None:
    async with AsyncExitStack() as stack:
        if not arguments:
            server = await stack.enter_async_context(StandInServer())
            arguments = {"host": server.host, "port": server.port}
            print("no server was named: running on the stand-in server, a test double (see --help)")
        pool = await stack.enter_async_context(AsyncConnectionPool(arguments, pool_size=3, name="quickstart"))
        await prepare(pool)

        names = await asyncio.gather(*(user(pool, number) for number in range(200)))
        print(f"{len(names)} users asked at once, {len(set(names))} heroes answered")
        names = await asyncio.gather(*(leasing_user(pool, number) for number in range(200)))
        print(f"{len(names)} users leased a connection each, in turn, and got {len(set(names))} heroes")

        is_following = asyncio.Event()
        following = asyncio.create_task(follow(pool, is_following, wanted=5))
        await is_following.wait()
        for number in range(5):
            await pool.run(heroes.insert({"id": 1000 + number, "name": f"rookie {number}"}))
        print("the changefeed saw", ", ".join(await following))

        stats = pool.stats()
        print(f"{pool!r}: {stats.queries_done_total} queries,", end=" ")
        print(f"{stats.acquired_total} leases on {stats.opened_total} connections;", end=" ")
        print(
            f"{stats.waited_total} callers waited {stats.waited_seconds_total * 1000 / stats.waited_total:.0f} ms each"
        )
        await pool.run(R.db_drop("quickstart"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", help="a RethinkDB server")
    parser.add_argument("--port", type=int, help="its driver port, 28015 by default")
    named = {option: value for option, value in vars(parser.parse_args()).items() if value is not None}
    if not named and os.environ.get("RETHINKDB_URL"):
        named = {"url": os.environ["RETHINKDB_URL"]}
    asyncio.run(main(named))
