-- What a company set up. Ids are UUIDv7, times are milliseconds since 1970, UTC.

CREATE TABLE company (
    id UUID NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);

CREATE TABLE integration (
    id UUID NOT NULL PRIMARY KEY,
    company_id UUID NOT NULL REFERENCES company (id),
    name TEXT NOT NULL,
    provider TEXT NOT NULL,
    -- JSON, sealed with XChaCha20-Poly1305; bound to company_id and id.
    credentials BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (company_id, name)
);

CREATE TABLE agent (
    id UUID NOT NULL PRIMARY KEY,
    company_id UUID NOT NULL REFERENCES company (id),
    name TEXT NOT NULL,
    -- The agent's profile as JSON, the workflow's text included.
    profile TEXT NOT NULL,
    -- Grows by one with every change of the profile.
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (company_id, name)
);

CREATE TABLE line (
    id UUID NOT NULL PRIMARY KEY,
    integration_id UUID NOT NULL REFERENCES integration (id),
    number TEXT NOT NULL,
    agent_id UUID NOT NULL REFERENCES agent (id),
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (integration_id, number)
);

CREATE INDEX line_agent ON line (agent_id);

-- One row: a known text sealed with the secrets key, so that a wrong key is noticed at start.
CREATE TABLE secrets_probe (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    sealed BYTEA NOT NULL
);
