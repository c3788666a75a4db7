-- outmail: mail that goes out if and only if your transaction commits (using=). PostgreSQL 14 or later.
CREATE TABLE IF NOT EXISTS outmail_outbox (
    n        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id       text   NOT NULL,
    store    text,
    added_at bigint NOT NULL,
    content  bytea  NOT NULL,
    envelope text   NOT NULL
);
ALTER TABLE outmail_outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- For triggers, psql and every other language: complete messages, and simple ones.
CREATE SCHEMA IF NOT EXISTS outmail;

-- 130 bits as 26 characters of base32hex.
CREATE OR REPLACE FUNCTION outmail.spelled(bits bit varying) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT string_agg(substr('0123456789abcdefghijklmnopqrstuv', substring(bits FROM i * 5 + 1 FOR 5)::bit(5)::int + 1, 1), '' ORDER BY i)
    FROM generate_series(0, 25) AS i
$$;

-- A message's id: with a key always the same, else 48 bits of time and 82 of chance.
CREATE OR REPLACE FUNCTION outmail.message_id(key text DEFAULT NULL) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    source text;
BEGIN
    IF key IS NOT NULL THEN
        source := encode(sha256(convert_to('outmail key', 'UTF8') || '\x0000'::bytea || convert_to(key, 'UTF8')), 'hex');
        RETURN outmail.spelled(('x' || left(source, 34))::bit(136)::bit(130));
    END IF;
    source := right(gen_random_uuid()::text, 12) || right(gen_random_uuid()::text, 12);
    RETURN outmail.spelled(((extract(epoch FROM clock_timestamp()) * 1000)::bigint)::bit(48) || ('x' || source)::bit(96)::bit(82));
END
$$;

-- A complete message, bytes as they are; returns its id.
CREATE OR REPLACE FUNCTION outmail.enqueue(sender text, recipients text[], content bytea, key text DEFAULT NULL) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    id text := outmail.message_id(key);
BEGIN
    IF coalesce(cardinality(recipients), 0) = 0 THEN
        RAISE EXCEPTION 'outmail.enqueue: the message has no recipient' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF content IS NULL THEN
        RAISE EXCEPTION 'outmail.enqueue: the message has no content' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO outmail_outbox (id, added_at, content, envelope) VALUES (
        id, (extract(epoch FROM clock_timestamp()) * 1000)::bigint, content,
        json_build_object('sender', coalesce(sender, ''), 'recipients', recipients, 'key', key)::text
    );
    RETURN id;
END
$$;

-- A simple message, with the words of `send`: {"to": …, "subject": …, "text": …}. It is composed and checked when it is taken over;
-- a bad one ends as failed, with the reason. Returns its id.
CREATE OR REPLACE FUNCTION outmail.draft(words jsonb) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    id text := outmail.message_id(words ->> 'key');
BEGIN
    IF jsonb_typeof(words) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'outmail.draft: give a JSON object with the words of send: to, subject, text' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO outmail_outbox (id, added_at, content, envelope) VALUES (
        id, (extract(epoch FROM clock_timestamp()) * 1000)::bigint, ''::bytea, json_build_object('draft', words)::text
    );
    RETURN id;
END
$$;
