"""Real HTTP servers on loopback for the corpus tests."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from starlette.applications import Starlette

from kinject_assets.config import Lab
from kinject_assets.lab.wiki import wiki_routes
from kinject_assets.lab.world import World

Serve = Callable[[Starlette], str]

SMALL = Lab(seed=3, months=3, events_per_month=10, things=5)


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves an application for the time of a test; gives its address."""
    open_servers = []

    def start(app: Starlette) -> str:
        context = serving(app)
        open_servers.append(context)
        return context.__enter__()

    yield start
    for context in open_servers:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def world() -> World:
    return World(SMALL)


@pytest.fixture(scope="session")
def lab_api(world: World) -> Iterator[str]:
    """API address of the lab's wiki, holding `world`."""
    with serving(Starlette(routes=wiki_routes(world))) as address:
        yield f"{address}/w/api.php"
