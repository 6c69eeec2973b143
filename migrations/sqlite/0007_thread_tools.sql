-- What the agent's tools did before an answer was written, so that the next message finds the conversation where it was.
ALTER TABLE message ADD COLUMN rounds TEXT CHECK (rounds IS NULL OR json_valid(rounds));
