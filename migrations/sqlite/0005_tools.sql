-- Tools that companies make: HTTP requests and MCP servers. Every table here has its twin in ../postgres.

CREATE TABLE tool (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    company_id BLOB NOT NULL REFERENCES company (id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('http', 'mcp')),
    name TEXT NOT NULL,
    -- JSON, without its secret headers.
    definition TEXT NOT NULL CHECK (json_valid(definition)),
    -- Those, sealed.
    secrets BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (company_id, name)
) STRICT;
