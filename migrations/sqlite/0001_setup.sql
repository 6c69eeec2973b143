-- What a company set up. Ids are UUIDv7 (16 bytes), times are milliseconds since 1970, UTC.

CREATE TABLE company (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    name TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE integration (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    company_id BLOB NOT NULL REFERENCES company (id),
    name TEXT NOT NULL,
    provider TEXT NOT NULL,
    -- JSON, sealed with XChaCha20-Poly1305; bound to company_id and id.
    credentials BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (company_id, name)
) STRICT;

CREATE TABLE agent (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    company_id BLOB NOT NULL REFERENCES company (id),
    name TEXT NOT NULL,
    -- The agent's profile as JSON, the workflow's text included.
    profile TEXT NOT NULL CHECK (json_valid(profile)),
    -- Grows by one with every change of the profile.
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (company_id, name)
) STRICT;

CREATE TABLE line (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    integration_id BLOB NOT NULL REFERENCES integration (id),
    number TEXT NOT NULL,
    agent_id BLOB NOT NULL REFERENCES agent (id),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (integration_id, number)
) STRICT;

CREATE INDEX line_agent ON line (agent_id);

-- One row: a known text sealed with the secrets key, so that a wrong key is noticed at start.
CREATE TABLE secrets_probe (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    sealed BLOB NOT NULL
) STRICT;
