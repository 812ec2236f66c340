"""A PostgreSQL server with pgbench at work: in the end all sums agree, and no page of a table or an index is damaged."""
import os, subprocess, sys, time

programs, clients, transactions = sys.argv[1], 4, int(sys.argv[2])
here = os.getcwd()


def run(name, *arguments):
    words = [os.path.join(programs, name), *arguments]
    end = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert end.returncode == 0, (words, end.returncode, end.stdout[-2000:], end.stderr[-2000:])
    return end.stdout


os.environ.update(PGHOST=here, PGDATABASE="postgres", PGUSER="someone")
options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={here}", "-c", "shared_buffers=24MB",
           # What is written while nobody has the file open is beyond a checkpoint.
           "-c", "checkpoint_timeout=1d", "-c", "max_wal_size=4GB", "-c", "autovacuum=off", "-c", "bgwriter_lru_maxpages=0"]
server = subprocess.Popen([os.path.join(programs, "postgres"), "-D", "data", *options, *sys.argv[3:]])
while subprocess.run([os.path.join(programs, "pg_isready"), "-q"]).returncode != 0:
    assert server.poll() is None
if transactions == 0:
    run("pgbench", "-i", "-q", "-s", "1")
    server.terminate()
    sys.exit(server.wait())
history = "select count(*) from pgbench_history"
work = subprocess.Popen([os.path.join(programs, "pgbench"), "-n", "-c", str(clients), "-j", "2", "-t", str(transactions)],
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
while int(run("psql", "-X", "-A", "-t", "-c", history)) < 50:
    time.sleep(0.01)
print("at work", flush=True)
assert work.wait() == 0
sums = run("psql", "-X", "-A", "-t", "-c",
           "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), "
           "(select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history), "
           "(select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history), "
           f"({history})")
print("agree:", sums.strip(), flush=True)
if os.path.exists(os.path.join(programs, "pg_amcheck")):
    run("pg_amcheck", "--install-missing", "--heapallindexed", "-d", "postgres")
server.terminate()
print("ended with", server.wait())
