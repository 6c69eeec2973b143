"""A small MCP server of the reference SDK (`pip install mcp`), for tests: a port, then `json` for answers without streams;
or `stdio`."""

import sys

from mcp.types import ToolAnnotations

try:
    from mcp.server.mcpserver import MCPServer
except ImportError:
    from mcp.server.fastmcp import FastMCP as MCPServer

server = MCPServer("crm")


@server.tool(annotations=ToolAnnotations(readOnlyHint=True))
def find_contact(name: str) -> dict:
    """Finds a contact by name."""
    return {"name": name, "phone": "+380441234567"}


@server.tool()
def add_note(text: str) -> str:
    """Adds a note to the caller's card."""
    if text == "bad":
        raise ValueError("there is no card")
    return "noted: " + text


if sys.argv[1] == "stdio":
    server.run("stdio")
    sys.exit()
options = {"host": "127.0.0.1", "port": int(sys.argv[1]), "json_response": "json" in sys.argv[2:]}
try:
    server.run("streamable-http", **options)
except TypeError:
    for name, value in options.items():
        setattr(server.settings, name, value)
    server.run("streamable-http")
