-- Tools that companies make: HTTP requests and MCP servers. Every table here has its twin in ../sqlite.

CREATE TABLE tool (
    id UUID NOT NULL PRIMARY KEY,
    company_id UUID NOT NULL REFERENCES company (id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('http', 'mcp')),
    name TEXT NOT NULL,
    -- JSON, without its secret headers.
    definition TEXT NOT NULL,
    -- Those, sealed.
    secrets BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (company_id, name)
);
