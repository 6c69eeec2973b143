-- What comes after a call: its analysis, and what companies are told of it. Ids are UUIDv7, times are milliseconds since
-- 1970, UTC; JSON is text. Every table here has its twin in ../postgres.

-- One row a call that is over, written by the triggers below in the transaction that ended it, whoever did.
CREATE TABLE call_outcome (
    call_id BLOB NOT NULL PRIMARY KEY REFERENCES call (id) ON DELETE CASCADE,
    company_id BLOB NOT NULL,
    -- When its end was put into the outbox; NULL: not yet.
    told_at INTEGER,
    -- When its analysis is due (again); NULL: it has one, or gets none.
    next_at INTEGER,
    attempts INTEGER NOT NULL,
    -- JSON.
    analysis TEXT CHECK (analysis IS NULL OR json_valid(analysis)),
    analysed_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX call_outcome_untold ON call_outcome (call_id) WHERE told_at IS NULL;
CREATE INDEX call_outcome_due ON call_outcome (next_at) WHERE next_at IS NOT NULL;

CREATE TRIGGER call_begun_and_over AFTER INSERT ON call WHEN new.ended_at IS NOT NULL BEGIN
    INSERT INTO call_outcome (call_id, company_id, next_at, attempts)
    SELECT new.id, new.company_id, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM call_outcome WHERE call_id = new.id);
END;
CREATE TRIGGER call_over AFTER UPDATE OF ended_at ON call WHEN old.ended_at IS NULL AND new.ended_at IS NOT NULL BEGIN
    INSERT INTO call_outcome (call_id, company_id, next_at, attempts)
    SELECT new.id, new.company_id, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM call_outcome WHERE call_id = new.id);
END;

-- What an agent remembers of a number: on either side of a call, and in messages.
CREATE INDEX call_caller ON call (company_id, caller, id);
CREATE INDEX call_callee ON call (company_id, callee, id);
CREATE INDEX message_peer ON message (company_id, peer, id);

-- Where a company is told what happened.
CREATE TABLE webhook_endpoint (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    company_id BLOB NOT NULL REFERENCES company (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    url TEXT NOT NULL,
    -- JSON: names of events.
    events TEXT NOT NULL CHECK (json_valid(events)),
    -- Sealed; the one before it signs too until its time is over.
    secret BLOB NOT NULL,
    old_secret BLOB,
    old_until INTEGER,
    enabled INTEGER NOT NULL,
    -- Why it was switched off, where nobody asked for it.
    disabled_reason TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (company_id, name)
) STRICT;

-- What happened, word for word as it is told.
CREATE TABLE webhook_event (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    company_id BLOB NOT NULL REFERENCES company (id) ON DELETE CASCADE,
    type TEXT NOT NULL,
    -- The call or message: its events are told in their order.
    subject BLOB NOT NULL,
    body TEXT NOT NULL CHECK (json_valid(body)),
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX webhook_event_age ON webhook_event (created_at);

CREATE TABLE webhook_delivery (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    endpoint_id BLOB NOT NULL REFERENCES webhook_endpoint (id) ON DELETE CASCADE,
    event_id BLOB NOT NULL REFERENCES webhook_event (id) ON DELETE CASCADE,
    subject BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'dead')),
    attempts INTEGER NOT NULL,
    next_at INTEGER NOT NULL,
    -- Of the last attempt: the status, the beginning of the answer, or why there was none.
    status INTEGER,
    answer TEXT,
    error TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (endpoint_id, event_id)
) STRICT;
CREATE INDEX webhook_delivery_due ON webhook_delivery (endpoint_id, next_at) WHERE state = 'waiting';
CREATE INDEX webhook_delivery_order ON webhook_delivery (endpoint_id, subject, id) WHERE state = 'waiting';
CREATE INDEX webhook_delivery_list ON webhook_delivery (endpoint_id, state, id);
CREATE INDEX webhook_delivery_event ON webhook_delivery (event_id);

-- What a company's agents have used on a day (counted from 1970, UTC), all calls and threads together.
CREATE TABLE spend (
    company_id BLOB NOT NULL REFERENCES company (id) ON DELETE CASCADE,
    day INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    heard_ms INTEGER NOT NULL,
    spoken_chars INTEGER NOT NULL,
    -- Millionths of the currency that the prices are in.
    micros INTEGER NOT NULL,
    PRIMARY KEY (company_id, day)
) STRICT, WITHOUT ROWID;
