-- Who may look, what happened, and what the set-up lacked for it. Ids are UUIDv7, times are milliseconds since 1970,
-- UTC; JSON is text. Every table here has its twin in ../sqlite.

-- One row: grows with every change of companies, integrations, lines and agents, so that servers notice it.
CREATE TABLE setup_version (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    version BIGINT NOT NULL
);
INSERT INTO setup_version (id, version) VALUES (1, 1);

-- JSON: allowed countries, quiet hours, caps.
ALTER TABLE company ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';
ALTER TABLE company ADD COLUMN updated_at BIGINT NOT NULL DEFAULT 0;

-- Last part of the webhooks' path for providers that sign nothing; sealed.
ALTER TABLE integration ADD COLUMN webhook_secret BYTEA;
ALTER TABLE integration ADD COLUMN verified_at BIGINT;
-- What the provider said when it was last asked in vain.
ALTER TABLE integration ADD COLUMN last_error TEXT;
-- The account as its provider calls it.
ALTER TABLE integration ADD COLUMN account TEXT;

-- JSON: the webhook settings that stood at the provider before ours were written.
ALTER TABLE line ADD COLUMN saved_webhooks TEXT;
ALTER TABLE line ADD COLUMN prepared_at BIGINT;

-- Every profile that an agent has had: a call record names the version it ran with.
CREATE TABLE agent_version (
    agent_id UUID NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
    version BIGINT NOT NULL,
    profile TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (agent_id, version)
);
INSERT INTO agent_version (agent_id, version, profile, created_at) SELECT id, version, profile, updated_at FROM agent;

CREATE TABLE person (
    id UUID NOT NULL PRIMARY KEY,
    -- Lower case: what is typed at the log-in.
    email TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    -- PHC string, argon2id.
    password TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    disabled_at BIGINT
);

CREATE TABLE membership (
    person_id UUID NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    company_id UUID NOT NULL REFERENCES company (id) ON DELETE CASCADE,
    role TEXT NOT NULL CHECK (role IN ('owner', 'operator', 'viewer')),
    created_at BIGINT NOT NULL,
    PRIMARY KEY (person_id, company_id)
);
CREATE INDEX membership_company ON membership (company_id);

CREATE TABLE session (
    -- SHA-256 of the cookie: who reads the table cannot log in.
    hash BYTEA NOT NULL PRIMARY KEY CHECK (octet_length(hash) = 32),
    person_id UUID NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    company_id UUID NOT NULL REFERENCES company (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX session_person ON session (person_id);

CREATE TABLE api_key (
    id UUID NOT NULL PRIMARY KEY,
    company_id UUID NOT NULL REFERENCES company (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    -- The key's beginning, for telling keys apart.
    prefix TEXT NOT NULL,
    -- SHA-256: keys are 256 random bits, so that a slow hash would protect nothing.
    hash BYTEA NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    role TEXT NOT NULL CHECK (role IN ('owner', 'operator', 'viewer')),
    created_at BIGINT NOT NULL,
    last_used_at BIGINT,
    revoked_at BIGINT
);
CREATE INDEX api_key_company ON api_key (company_id);

-- A process that runs calls. Its last beat dates the end of the calls that it left open.
CREATE TABLE node (
    id UUID NOT NULL PRIMARY KEY,
    host TEXT NOT NULL,
    pid BIGINT NOT NULL,
    -- With the pid: which process it was, though pids are used again.
    pid_started BIGINT NOT NULL,
    seen_at BIGINT NOT NULL
);

-- A record outlives the line, the agent and the integration that it names: no foreign keys to them.
CREATE TABLE call (
    id UUID NOT NULL PRIMARY KEY,
    company_id UUID NOT NULL,
    company TEXT NOT NULL,
    integration_id UUID NOT NULL,
    provider TEXT NOT NULL,
    provider_call TEXT NOT NULL,
    line TEXT NOT NULL,
    direction TEXT NOT NULL,
    caller TEXT NOT NULL,
    callee TEXT NOT NULL,
    agent_id UUID,
    agent_version BIGINT,
    agent TEXT NOT NULL,
    -- Why we dialled.
    purpose TEXT,
    started_at BIGINT NOT NULL,
    answered_at BIGINT,
    ended_at BIGINT,
    end_by TEXT,
    end_reason TEXT,
    outcome TEXT NOT NULL,
    -- The provider's own word, and its count of seconds.
    provider_status TEXT,
    talk_s BIGINT,
    answered_by TEXT,
    -- JSON.
    remembered TEXT NOT NULL,
    interruptions TEXT NOT NULL,
    faults TEXT NOT NULL,
    handover TEXT,
    -- The process that runs it; NULL: none of ours, or over.
    node_id UUID,
    -- Last sign of life.
    seen_at BIGINT NOT NULL
);
CREATE INDEX call_company ON call (company_id, id);
CREATE INDEX call_placed ON call (company_id, direction, started_at);
CREATE INDEX call_open ON call (node_id) WHERE ended_at IS NULL;

CREATE TABLE call_leg (
    call_id UUID NOT NULL REFERENCES call (id) ON DELETE CASCADE,
    seq BIGINT NOT NULL,
    -- `caller`, `callee`, `operator`.
    party TEXT NOT NULL,
    -- `twilio`, `sip`, …
    transport TEXT NOT NULL,
    number TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    ended_at BIGINT,
    PRIMARY KEY (call_id, seq)
);

CREATE TABLE call_turn (
    call_id UUID NOT NULL REFERENCES call (id) ON DELETE CASCADE,
    seq BIGINT NOT NULL,
    who TEXT NOT NULL,
    text TEXT NOT NULL,
    heard TEXT,
    start_ms BIGINT NOT NULL,
    end_ms BIGINT NOT NULL,
    -- JSON: latencies, milliseconds from the end of the caller's speech.
    stages TEXT NOT NULL,
    PRIMARY KEY (call_id, seq)
);

CREATE TABLE call_tool (
    call_id UUID NOT NULL REFERENCES call (id) ON DELETE CASCADE,
    seq BIGINT NOT NULL,
    name TEXT NOT NULL,
    arguments TEXT NOT NULL,
    result TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (call_id, seq)
);

-- What providers call a call.
CREATE TABLE call_alias (
    integration_id UUID NOT NULL,
    provider_call TEXT NOT NULL,
    call_id UUID NOT NULL REFERENCES call (id) ON DELETE CASCADE,
    PRIMARY KEY (integration_id, provider_call)
);
CREATE INDEX call_alias_call ON call_alias (call_id);

CREATE TABLE recording (
    id UUID NOT NULL PRIMARY KEY,
    company_id UUID NOT NULL,
    call_id UUID NOT NULL REFERENCES call (id) ON DELETE CASCADE,
    -- `local` (a path below recording.dir) or the provider's name (fetched by its own id of the call).
    source TEXT NOT NULL,
    location TEXT NOT NULL,
    seconds BIGINT,
    created_at BIGINT NOT NULL,
    UNIQUE (call_id, source)
);

CREATE TABLE message (
    id UUID NOT NULL PRIMARY KEY,
    company_id UUID NOT NULL,
    integration_id UUID NOT NULL,
    direction TEXT NOT NULL,
    -- Our number and theirs: the thread.
    line TEXT NOT NULL,
    peer TEXT NOT NULL,
    text TEXT NOT NULL,
    media TEXT NOT NULL,
    provider_message TEXT,
    status TEXT NOT NULL,
    error TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (integration_id, provider_message)
);
CREATE INDEX message_thread ON message (company_id, line, peer, id);
CREATE INDEX message_company ON message (company_id, id);

-- Webhooks that were believed, before they act.
CREATE TABLE inbox (
    id UUID NOT NULL PRIMARY KEY,
    company_id UUID NOT NULL,
    integration_id UUID NOT NULL,
    -- The same for every delivery of the same thing.
    once_key TEXT,
    route TEXT NOT NULL,
    method TEXT NOT NULL,
    url TEXT NOT NULL,
    content_type TEXT,
    body BYTEA NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'done', 'failed')),
    attempts BIGINT NOT NULL,
    next_at BIGINT NOT NULL,
    error TEXT,
    received_at BIGINT NOT NULL,
    done_at BIGINT,
    UNIQUE (integration_id, once_key)
);
CREATE INDEX inbox_waiting ON inbox (next_at) WHERE state = 'waiting';

CREATE TABLE audit (
    id UUID NOT NULL PRIMARY KEY,
    -- NULL: no company could be told.
    company_id UUID,
    at BIGINT NOT NULL,
    -- A person's or key's id in words, an address, or `cli`.
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX audit_company ON audit (company_id, id);

-- Answers given to requests that carried an idempotency key.
CREATE TABLE idempotency (
    company_id UUID NOT NULL REFERENCES company (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    -- SHA-256 of method, path and body: the same key for something else is refused.
    request BYTEA NOT NULL CHECK (octet_length(request) = 32),
    -- NULL: the first request is still being worked on.
    status BIGINT,
    body TEXT,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (company_id, key)
);
CREATE INDEX idempotency_age ON idempotency (created_at);
