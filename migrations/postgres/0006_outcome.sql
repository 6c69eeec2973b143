-- What comes after a call: its analysis, and what companies are told of it. Ids are UUIDv7, times are milliseconds since
-- 1970, UTC; JSON is text. Every table here has its twin in ../sqlite.

-- One row a call that is over, written by the triggers below in the transaction that ended it, whoever did.
CREATE TABLE call_outcome (
    call_id UUID NOT NULL PRIMARY KEY REFERENCES call (id) ON DELETE CASCADE,
    company_id UUID NOT NULL,
    -- When its end was put into the outbox; NULL: not yet.
    told_at BIGINT,
    -- When its analysis is due (again); NULL: it has one, or gets none.
    next_at BIGINT,
    attempts BIGINT NOT NULL,
    -- JSON.
    analysis TEXT,
    analysed_at BIGINT
);
CREATE INDEX call_outcome_untold ON call_outcome (call_id) WHERE told_at IS NULL;
CREATE INDEX call_outcome_due ON call_outcome (next_at) WHERE next_at IS NOT NULL;

CREATE FUNCTION note_call_over() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO call_outcome (call_id, company_id, next_at, attempts) VALUES (new.id, new.company_id, 0, 0)
    ON CONFLICT (call_id) DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER call_begun_and_over AFTER INSERT ON call
    FOR EACH ROW WHEN (new.ended_at IS NOT NULL) EXECUTE FUNCTION note_call_over();
CREATE TRIGGER call_over AFTER UPDATE OF ended_at ON call
    FOR EACH ROW WHEN (old.ended_at IS NULL AND new.ended_at IS NOT NULL) EXECUTE FUNCTION note_call_over();

-- What an agent remembers of a number: on either side of a call, and in messages.
CREATE INDEX call_caller ON call (company_id, caller, id);
CREATE INDEX call_callee ON call (company_id, callee, id);
CREATE INDEX message_peer ON message (company_id, peer, id);

-- Where a company is told what happened.
CREATE TABLE webhook_endpoint (
    id UUID NOT NULL PRIMARY KEY,
    company_id UUID NOT NULL REFERENCES company (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    url TEXT NOT NULL,
    -- JSON: names of events.
    events TEXT NOT NULL,
    -- Sealed; the one before it signs too until its time is over.
    secret BYTEA NOT NULL,
    old_secret BYTEA,
    old_until BIGINT,
    enabled BIGINT NOT NULL,
    -- Why it was switched off, where nobody asked for it.
    disabled_reason TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (company_id, name)
);

-- What happened, word for word as it is told.
CREATE TABLE webhook_event (
    id UUID NOT NULL PRIMARY KEY,
    company_id UUID NOT NULL REFERENCES company (id) ON DELETE CASCADE,
    type TEXT NOT NULL,
    -- The call or message: its events are told in their order.
    subject UUID NOT NULL,
    body TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX webhook_event_age ON webhook_event (created_at);

CREATE TABLE webhook_delivery (
    id UUID NOT NULL PRIMARY KEY,
    endpoint_id UUID NOT NULL REFERENCES webhook_endpoint (id) ON DELETE CASCADE,
    event_id UUID NOT NULL REFERENCES webhook_event (id) ON DELETE CASCADE,
    subject UUID NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'dead')),
    attempts BIGINT NOT NULL,
    next_at BIGINT NOT NULL,
    -- Of the last attempt: the status, the beginning of the answer, or why there was none.
    status BIGINT,
    answer TEXT,
    error TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (endpoint_id, event_id)
);
CREATE INDEX webhook_delivery_due ON webhook_delivery (endpoint_id, next_at) WHERE state = 'waiting';
CREATE INDEX webhook_delivery_order ON webhook_delivery (endpoint_id, subject, id) WHERE state = 'waiting';
CREATE INDEX webhook_delivery_list ON webhook_delivery (endpoint_id, state, id);
CREATE INDEX webhook_delivery_event ON webhook_delivery (event_id);

-- What a company's agents have used on a day (counted from 1970, UTC), all calls and threads together.
CREATE TABLE spend (
    company_id UUID NOT NULL REFERENCES company (id) ON DELETE CASCADE,
    day BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    heard_ms BIGINT NOT NULL,
    spoken_chars BIGINT NOT NULL,
    -- Millionths of the currency that the prices are in.
    micros BIGINT NOT NULL,
    PRIMARY KEY (company_id, day)
);
