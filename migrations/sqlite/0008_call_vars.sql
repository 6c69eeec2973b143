-- What whoever asked for the call gave with it, for its agent: name to text, number or truth.
ALTER TABLE call ADD COLUMN vars TEXT CHECK (vars IS NULL OR json_valid(vars));
