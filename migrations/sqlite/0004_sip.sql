-- What SIP and RTP know of a call: packets and their quality, what a transfer came to, the messages. JSON is text.
ALTER TABLE call ADD COLUMN quality TEXT CHECK (quality IS NULL OR json_valid(quality));
ALTER TABLE call ADD COLUMN transfer_status INTEGER;
ALTER TABLE call ADD COLUMN ladder TEXT CHECK (ladder IS NULL OR json_valid(ladder));
