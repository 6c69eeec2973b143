-- What agents look up. Ids are UUIDv7 (passages count), times are milliseconds since 1970, UTC; JSON is text. Every table
-- here has its twin in ../sqlite; full text is tsvector here and FTS5 there, over stems that the program makes.

CREATE TABLE knowledge_base (
    id UUID NOT NULL PRIMARY KEY,
    company_id UUID NOT NULL REFERENCES company (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    language TEXT NOT NULL,
    -- Grows whenever other passages are searched: what servers keep in memory of it is then read again.
    revision BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (company_id, name)
);

CREATE TABLE knowledge_document (
    id UUID NOT NULL PRIMARY KEY,
    base_id UUID NOT NULL REFERENCES knowledge_base (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    -- Of the file, in hexadecimal digits.
    sha256 TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('indexing', 'ready', 'failed')),
    -- Why it failed, or what it lacks.
    error TEXT,
    -- Of the passages that are searched; those of the next one grow beside them. 0: there are none.
    version BIGINT NOT NULL,
    passages BIGINT NOT NULL,
    vectors BIGINT NOT NULL,
    -- JSON: the blocks of text that were read from the file.
    content TEXT NOT NULL,
    -- When a process began to make its passages.
    claimed_at BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (base_id, name)
);
CREATE INDEX knowledge_document_indexing ON knowledge_document (claimed_at) WHERE state = 'indexing';

CREATE TABLE knowledge_passage (
    id BIGINT NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    base_id UUID NOT NULL,
    document_id UUID NOT NULL REFERENCES knowledge_document (id) ON DELETE CASCADE,
    version BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    place TEXT NOT NULL,
    text TEXT NOT NULL,
    -- Stems of place and text, separated by spaces.
    terms TEXT NOT NULL,
    -- Little-endian f32 of length 1, and the model that made them.
    vector BYTEA,
    model TEXT,
    -- The stems with their base's mark before them, so that a search reads one base's passages and no others.
    words TSVECTOR NOT NULL
);
CREATE INDEX knowledge_passage_document ON knowledge_passage (document_id, version);
CREATE INDEX knowledge_passage_base ON knowledge_passage (base_id);
CREATE INDEX knowledge_passage_words ON knowledge_passage USING gin (words);
