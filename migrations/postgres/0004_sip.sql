-- What SIP and RTP know of a call: packets and their quality, what a transfer came to, the messages. JSON is text.
ALTER TABLE call ADD COLUMN quality TEXT;
ALTER TABLE call ADD COLUMN transfer_status BIGINT;
ALTER TABLE call ADD COLUMN ladder TEXT;
