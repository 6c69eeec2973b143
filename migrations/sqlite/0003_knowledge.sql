-- What agents look up. Ids are UUIDv7 (passages count), times are milliseconds since 1970, UTC; JSON is text. Every table
-- here has its twin in ../postgres; full text is FTS5 here and tsvector there, over stems that the program makes.

CREATE TABLE knowledge_base (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    company_id BLOB NOT NULL REFERENCES company (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    language TEXT NOT NULL,
    -- Grows whenever other passages are searched: what servers keep in memory of it is then read again.
    revision INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (company_id, name)
) STRICT;

CREATE TABLE knowledge_document (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    base_id BLOB NOT NULL REFERENCES knowledge_base (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    -- Of the file, in hexadecimal digits.
    sha256 TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('indexing', 'ready', 'failed')),
    -- Why it failed, or what it lacks.
    error TEXT,
    -- Of the passages that are searched; those of the next one grow beside them. 0: there are none.
    version INTEGER NOT NULL,
    passages INTEGER NOT NULL,
    vectors INTEGER NOT NULL,
    -- JSON: the blocks of text that were read from the file.
    content TEXT NOT NULL CHECK (json_valid(content)),
    -- When a process began to make its passages.
    claimed_at INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (base_id, name)
) STRICT;
CREATE INDEX knowledge_document_indexing ON knowledge_document (claimed_at) WHERE state = 'indexing';

CREATE TABLE knowledge_passage (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    base_id BLOB NOT NULL,
    document_id BLOB NOT NULL REFERENCES knowledge_document (id) ON DELETE CASCADE,
    version INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    place TEXT NOT NULL,
    text TEXT NOT NULL,
    -- Stems of place and text, separated by spaces.
    terms TEXT NOT NULL,
    -- Little-endian f32 of length 1, and the model that made them.
    vector BLOB,
    model TEXT
) STRICT;
CREATE INDEX knowledge_passage_document ON knowledge_passage (document_id, version);
CREATE INDEX knowledge_passage_base ON knowledge_passage (base_id);

-- Holds the index alone: the text stands in the table. Its words are the stems with their base's mark before them, so that
-- a search reads one base's passages and no others.
CREATE VIRTUAL TABLE knowledge_text USING fts5 (
    words, content = '', contentless_delete = 1, tokenize = 'unicode61 remove_diacritics 0'
);
CREATE TRIGGER knowledge_passage_removed AFTER DELETE ON knowledge_passage BEGIN
    DELETE FROM knowledge_text WHERE rowid = old.id;
END;
