"""A database in a file, with a write-ahead log: transactions, a second connection that reads, a rollback."""
import hashlib
import sqlite3
import time

writer = sqlite3.connect("data.db", isolation_level=None)
assert writer.execute("pragma journal_mode=wal").fetchone() == ("wal",)
writer.execute("pragma wal_autocheckpoint=200")
writer.execute("create table t (id integer primary key, step integer, text blob)")
writer.execute("create index by_step on t (step)")
reader = sqlite3.connect("data.db", isolation_level=None)
for step in range(160):
    writer.execute("begin immediate")
    for i in range(300):
        text = hashlib.sha256(f"{step}/{i}".encode()).digest() * 4
        writer.execute("insert into t (step, text) values (?, ?)", (step, text))
    writer.execute("update t set text = substr(text, 2) where id % 17 = ?", (step % 17,))
    time.sleep(0.01)
    writer.execute("rollback" if step % 10 == 7 else "commit")
    count, total = reader.execute("select count(*), sum(length(text)) from t").fetchone()
    if step % 16 == 0:
        print(step, count, total, flush=True)
assert reader.execute("pragma integrity_check").fetchone() == ("ok",)
digest = hashlib.sha256()
for row in reader.execute("select id, step, text from t order by id"):
    digest.update(repr(row).encode())
print("end", digest.hexdigest())
