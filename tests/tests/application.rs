//! A real application in both hulls: PostgreSQL on a `disk` volume in a microVM, a web service in a container that finds it by
//! name and reaches nothing else, and a machine that dies in the middle of the work.

use dhow_tests::debian::{self, get_soon};
use dhow_tests::traces::{hypervisors, kill};
use dhow_tests::{Store, vm};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Makes the cluster on an empty volume, and serves it.
const DATABASE: &str = r#"
bin=$(echo /usr/lib/postgresql/*/bin); data=/data/cluster
if [ ! -s $data/PG_VERSION ]; then
    mkdir -p $data && chown postgres $data
    setpriv --reuid postgres --regid postgres --init-groups $bin/initdb -D $data -A trust >/dev/null
    echo 'host all all all trust' >>$data/pg_hba.conf
    sync
fi
mkdir -p /run/postgresql && chown postgres /run/postgresql
exec setpriv --reuid postgres --regid postgres --init-groups $bin/postgres -D $data -c listen_addresses='*'
"#;

/// Answers with the number of transactions in the database.
const SERVICE: &str = r#"
import http.server, psycopg2
class Count(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with psycopg2.connect(host="db", user="postgres", connect_timeout=20) as database, database.cursor() as cursor:
            cursor.execute("select count(*) from pgbench_history")
            body = str(cursor.fetchone()[0]).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", 8000), Count).serve_forever()
"#;

/// Nobody tells a client that the machine at the other end has gone: it must ask (libpq, "Parameter Key Words").
const CONNECTION: &str = "host=db user=postgres dbname=postgres tcp_user_timeout=5000 keepalives_idle=2 \
                          keepalives_interval=1 keepalives_count=4";
const CLIENTS: u64 = 4;
/// In which the database must be there, emulated beside other tests.
const PATIENCE: Duration = Duration::from_secs(240);

/// Runs a statement in the database, from a container on its network.
fn query(store: &Store, statement: &str) -> Option<String> {
    let out = store.out(&["exec", "tools", "psql", "-h", "db", "-U", "postgres", "-Atc", statement]);
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn await_database(store: &Store) {
    let begin = Instant::now();
    while query(store, "select 1").as_deref() != Some("1") {
        assert!(begin.elapsed() < PATIENCE, "no database: {}", store.both(&["logs", "db"]));
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Transactions whose end pgbench was told of: a line in its log for each.
fn acknowledged(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap().flatten();
    files.map(|f| std::fs::read_to_string(f.path()).unwrap().lines().count() as u64).sum()
}

#[test]
fn a_database_in_a_microvm_and_its_service_in_a_container() {
    let Some(tar) = debian::with_postgresql() else { return };
    let Some(store) = vm::store() else { return };
    store.ok(&["import", tar.to_str().unwrap(), "debian"]);
    store.ok(&["network", "create", "shop"]);
    store.ok(&["volume", "create", "--driver", "disk", "--opt", "size=1g", "data"]);
    let machine =
        ["run", "-d", "--vm", "--name", "db", "--network", "shop", "-m", "512m", "-v", "data:/data"];
    store.ok(&[&machine[..], &["debian", "sh", "-c", DATABASE]].concat());
    let log = tempfile::tempdir().unwrap();
    let mounted = format!("{}:/log", log.path().display());
    store.ok(&[
        "run",
        "-d",
        "--name",
        "tools",
        "--network",
        "shop",
        "-v",
        &mounted,
        "debian",
        "sleep",
        "infinity",
    ]);
    store.ok(&[
        "run",
        "-d",
        "--name",
        "other",
        "--network",
        "shop",
        "busybox",
        "httpd",
        "-f",
        "-p",
        "80",
        "-h",
        "/etc",
    ]);
    await_database(&store);
    let pgbench = format!("$(echo /usr/lib/postgresql/*/bin)/pgbench '{CONNECTION}'");
    store.ok(&["exec", "tools", "sh", "-c", &format!("{pgbench} -i -q -s 1 2>&1")]);

    let service =
        ["run", "-d", "--name", "web", "--network", "shop", "-p", "127.0.0.1::8000", "--egress", "db:5432"];
    store.ok(&[&service[..], &["debian", "python3", "-uc", SERVICE]].concat());
    let address = store.ok(&["port", "web", "8000"]);
    assert!(get_soon(&address, "/").ends_with("\r\n\r\n0"), "{}", get_soon(&address, "/"));

    // The service reaches the database and nothing else: no neighbour, not by name nor by address.
    let reach = |host: &str, port: u16| {
        let program = format!("import socket; socket.create_connection(('{host}', {port}), 3)");
        store.out(&["exec", "web", "python3", "-c", &program]).status.success()
    };
    let format = "{{.NetworkSettings.Networks.shop.IPAddress}}";
    let [db, other] = ["db", "other"].map(|name| store.ok(&["inspect", "-f", format, name]));
    assert!(reach("db", 5432) && reach(&db, 5432), "the database");
    assert!(!reach("other", 80) && !reach(&other, 80) && !reach(&db, 22), "what the policy does not name");
    let tools = format!("import socket; socket.create_connection(('{other}', 80), 10)");
    store.ok(&["exec", "tools", "python3", "-c", &tools]);

    // The machine dies while it works.
    let work = format!("cd /log && {pgbench} -c {CLIENTS} -T 120 -l >/dev/null 2>&1");
    let mut load =
        store.command(&["exec", "tools", "sh", "-c", &work]).stdout(Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    let count = || query(&store, "select count(*) from pgbench_history").and_then(|n| n.parse::<u64>().ok());
    while count().unwrap_or_default() < 20 {
        assert!(begin.elapsed() < PATIENCE, "pgbench does nothing");
        std::thread::sleep(Duration::from_millis(200));
    }
    let killed = hypervisors(&store);
    assert_eq!(killed.len(), 1, "one machine");
    kill(killed[0].pid);
    load.wait().unwrap();
    let told = acknowledged(log.path());
    assert_eq!(store.ok(&["wait", "db"]), "255");

    store.ok(&["start", "db"]);
    await_database(&store);
    let kept = count().unwrap();
    assert!(told > 0 && kept >= told, "{told} transactions were acknowledged, {kept} are there");
    assert!(kept <= told + CLIENTS, "{told} transactions were acknowledged, {kept} are there");
    assert!(get_soon(&address, "/").ends_with(&format!("\r\n\r\n{kept}")), "the service finds it again");
    store.ok(&["rm", "-f", "web", "db", "tools", "other"]);
    store.ok(&["volume", "rm", "data"]);
    store.ok(&["network", "rm", "shop"]);
}
