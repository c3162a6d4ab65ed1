from __future__ import annotations

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from loramux.server.access.auth import ApiKeys
from loramux.server.app import build_app
from loramux.server.errors import ERROR_KINDS


@pytest.fixture
async def client(start):
    return await start(allow_runtime_updates=True)


@pytest.fixture
async def document(client):
    return (await client.get("/openapi.json")).json


async def test_the_document_is_valid_openapi(document) -> None:
    OpenAPIV31SpecValidator(document).validate()


async def test_every_route_of_the_server_is_in_it_with_what_it_does(client, document) -> None:
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    operations = [operation for item in document["paths"].values() for operation in item.values()]

    assert described == {(route.method, route.resource.canonical) for route in build_app(client.server).router.routes()}
    assert [operation for operation in operations if not operation["summary"].endswith((".", ":"))] == []


async def test_routes_that_are_switched_off_are_not_in_it(start) -> None:
    document = (await (await start()).get("/openapi.json")).json

    assert "/v1/load_lora_adapter" not in document["paths"]


async def test_bodies_are_described_field_by_field(document) -> None:
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]

    assert schema["required"] == ["messages"]
    assert {"model", "stream", "max_completion_tokens"} <= set(schema["properties"])


async def test_every_error_of_the_contract_is_in_it_under_its_status(document) -> None:
    described = {
        (int(status), code)
        for status, response in document["components"]["responses"].items()
        for code in response["content"]["application/json"]["schema"]["properties"]["error"]["properties"]["code"][
            "enum"
        ]
    }

    assert described == {(kind.status, code) for code, kind in ERROR_KINDS.items()}


async def test_it_says_which_scope_a_route_needs(start) -> None:
    client = await start(allow_runtime_updates=True, api_keys=ApiKeys.from_keys(["secret"]))
    reply = await client.get("/openapi.json", headers={"Authorization": "Bearer secret"})

    paths = reply.json["paths"]
    assert paths["/v1/completions"]["post"]["security"] == [{"apiKey": ["infer"]}]
    assert paths["/v1/load_lora_adapter"]["post"]["security"] == [{"apiKey": ["admin"]}]
    assert paths["/health"]["get"]["security"] == []


async def test_a_parameter_of_an_address_is_in_it(document) -> None:
    parameters = document["paths"]["/v1/models/{model}"]["get"]["parameters"]

    assert [(parameter["name"], parameter["in"]) for parameter in parameters] == [
        ("model", "path"),
        ("X-Request-Id", "header"),
    ]
