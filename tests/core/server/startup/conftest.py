import pytest
from aiohttp import web


@pytest.fixture
async def runner():
    """A server that says hello, without a socket yet."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    yield runner
    await runner.cleanup()
