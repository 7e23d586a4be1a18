-- The table of ./scripts/bench: psql -v n=5000000 -f benches/items.sql
-- Every value follows from the row's number, so two loads are equal. It holds what trips programs up: NULLs beside
-- empty texts, tabs, quotes, line ends, backslashes, emoji, microseconds, binary.
DROP TABLE IF EXISTS items;
CREATE TABLE items (
  id bigint PRIMARY KEY,
  qty int,
  price numeric(12,2),
  note text,
  code varchar(20),
  active bool,
  day date,
  updated_at timestamptz NOT NULL,
  uid uuid,
  doc jsonb,
  blob bytea
);
ALTER TABLE items SET (autovacuum_enabled = false);
INSERT INTO items
SELECT i,
  CASE WHEN i % 50 = 0 THEN NULL ELSE hashint8(i) % 100000 END,
  CASE WHEN i % 40 = 0 THEN NULL ELSE ((hashint8(i + 7)::bigint % 1000000000) / 100.0)::numeric(12,2) END,
  CASE WHEN i % 30 = 0 THEN NULL
       WHEN i % 31 = 0 THEN ''
       WHEN i % 1009 = 0 THEN E'tab\there "quoted", comma\nnewline \\ back \\N ä€😀 ' || i
       ELSE 'item ' || i || ' ' || left(md5(i::text), 24) END,
  'C' || lpad((hashint8(i + 3)::bigint % 1000000 + 1000000)::text, 8, '0'),
  i % 3 = 0,
  date '2015-01-01' + (i % 4000)::int,
  timestamptz '2024-01-01 00:00:00.000001+00' + (i % 31536000) * interval '1 second'
    + (abs(hashint8(i + 9)::bigint) % 1000000) * interval '1 microsecond',
  md5('u' || i)::uuid,
  CASE WHEN i % 20 = 0 THEN NULL
       ELSE jsonb_build_object('k', i % 1000, 'tag', left(md5('j' || i), 6), 'n', (i % 100000) / 8.0) END,
  CASE WHEN i % 5 = 0 THEN decode(md5('b' || i) || '00ff', 'hex') ELSE NULL END
FROM generate_series(1, :n) i;
CREATE INDEX items_updated_at ON items (updated_at);
VACUUM (ANALYZE, FREEZE) items;
