#!/bin/bash
# The workloads of the discovery scorecard: `workloads.sh NAME SEED` is one run of one of them, with input made from SEED.
# Each keeps its data under /srv/NAME, as a volume would be. Run as root in a container or a throw-away root; see record.py.
set -u
if [ "$1" = list ]; then sed -n 's/^\([a-z]*\)_run() .*/\1/p' "$0" | sort; exit 0; fi
name=$1
seed=$2
RANDOM=$seed
here=/srv/$name
mkdir -p "$here"
cd "$here" || exit 1

some() { echo $((RANDOM % ($2 - $1 + 1) + $1)); }
word() { local words=(amber birch cedar delta ember fjord grove heath inlet jetty knoll larch maple north ocean prism quartz ridge slate thorn umbra vigil willow yarrow zephyr); echo "${words[RANDOM % 25]}$1"; }
# What the workload itself does runs in its own cgroup; the rest of this file is its clients and whoever gives it work.
inside() { if [ "$BASH_SUBSHELL" -gt 0 ]; then become "$@"; else (become "$@"); fi; }
become() { [ -n "${INSIDE:-}" ] && echo 0 >"$INSIDE/cgroup.procs"; exec "$@"; }
until_port() { for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return; sleep 0.05; done; }

nginx_run() {
    mkdir -p html logs
    for _ in $(seq "$(some 3 9)"); do echo "page $RANDOM" >"html/$(word "$RANDOM").html"; done
    printf 'worker_processes 2; pid %s/nginx.pid; error_log %s/logs/error.log;\nevents {}\nhttp { access_log %s/logs/access.log; client_body_temp_path %s/body; server { listen 127.0.0.1:8081; root %s/html; } }\n' "$here" "$here" "$here" "$here" "$here" >nginx.conf
    inside nginx -c "$here/nginx.conf"
    until_port 8081
    for page in html/*.html; do curl -s -o /dev/null "http://127.0.0.1:8081/${page#html/}"; done
    curl -s -o /dev/null "http://127.0.0.1:8081/$(word "")"
    [ $((seed % 3)) = 0 ] && inside nginx -c "$here/nginx.conf" -s reload
    inside nginx -c "$here/nginx.conf" -s quit; wait_gone nginx.pid
}
wait_gone() { for _ in $(seq 100); do [ -e "$1" ] || return; sleep 0.05; done; }
redis_run() {
    inside redis-server --port 7311 --bind 127.0.0.1 --dir "$here" --appendonly yes --daemonize yes --pidfile "$here/redis.pid" --logfile "$here/redis.log" >/dev/null
    until_port 7311
    for _ in $(seq "$(some 5 30)"); do redis-cli -p 7311 set "k$RANDOM" "$RANDOM" >/dev/null; done
    redis-cli -p 7311 save >/dev/null
    [ $((seed % 2)) = 0 ] && redis-cli -p 7311 bgrewriteaof >/dev/null && sleep 0.3
    redis-cli -p 7311 shutdown save 2>/dev/null; wait_gone redis.pid
}
memcached_run() {
    chown nobody "$here"
    inside memcached -u nobody -l 127.0.0.1 -p 7312 -m 16 -P "$here/memcached.pid" -d
    until_port 7312
    for _ in $(seq "$(some 3 12)"); do bash -c "exec 3<>/dev/tcp/127.0.0.1/7312; printf 'set k$RANDOM 0 60 3\r\nabc\r\nquit\r\n' >&3; cat <&3 >/dev/null"; done
    kill "$(cat memcached.pid)"
}
sqlite_run() {
    { echo "create table if not exists t(a integer, b text);"; for _ in $(seq "$(some 5 40)"); do echo "insert into t values($RANDOM, '$(word "$RANDOM")');"; done
      echo "select count(*), sum(a) from t; vacuum;"; } >"job-$RANDOM.sql"
    for job in job-*.sql; do inside sqlite3 "$(word "").db" <"$job" >"report-$(some 1 9999).txt"; done
    inside sqlite3 main.db ".mode csv" "create table if not exists x(y)" ".backup backup-$((seed % 7)).db"
}
git_run() {
    export HOME=$here GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
    local repository; repository=$(word "$RANDOM")
    inside git init -q "$repository"; cd "$repository" || exit 1
    for _ in $(seq "$(some 2 5)"); do echo $RANDOM >"$(word "$RANDOM").txt"; inside git add -A; inside git commit -qm "$(word "")"; done
    inside git checkout -qb "$(word "$RANDOM")"; echo $RANDOM >more; inside git add more; inside git commit -qm more; inside git checkout -q -; inside git log --oneline >/dev/null; inside git status -s >/dev/null
    [ $((seed % 3)) = 0 ] && inside git gc -q; [ $((seed % 2)) = 0 ] && inside git tag "v1.$RANDOM"
    inside git diff HEAD~1 >/dev/null; inside git clone -q . "../copy-$RANDOM"
}
gcc_run() {
    mkdir -p src build
    for _ in $(seq "$(some 2 4)"); do printf '#include <stdio.h>\n#include <string.h>\nint main(void){ return puts("%s") < 0; }\n' "$RANDOM" >"src/$(word "$RANDOM").c"; done
    [ $((seed % 2)) = 0 ] && printf '#include <math.h>\n#include <stdlib.h>\nint main(void){ return (int)sqrt(rand()) == -1; }\n' >"src/$(word "$RANDOM").c"
    for source in src/*.c; do inside gcc -O1 -o "build/$(basename "$source" .c)" "$source" -lm; done
}
make_run() {
    mkdir -p out
    printf 'all: $(patsubst %%.in,out/%%.txt,$(wildcard *.in))\nout/%%.txt: %%.in\n\tsort $< | sed s/a/b/ > $@.tmp && mv $@.tmp $@\nclean:\n\trm -f out/*\n' >Makefile
    for _ in $(seq "$(some 2 8)"); do printf '%s\n%s\n' $RANDOM $RANDOM >"$(word "$RANDOM").in"; done
    inside make -s; [ $((seed % 3)) = 0 ] && inside make -s clean; return 0
}
bash_run() {
    cat >entry.sh <<'IN'
#!/bin/bash
set -e
: "${PORT:=80}"
while read -r line; do eval "echo \"$line\""; done <template >"conf.$$"
mv "conf.$$" app.conf
mkdir -p cache/"$1"
date +%F >cache/"$1"/stamp
ls cache | wc -l >count
cat <<END >"$(mktemp run.XXXXXX)"
$(cat app.conf)
END
find cache -mindepth 1 -type d -name '*9' -exec rm -r {} +
IN
    printf 'port=$PORT\nuser=$USER_NAME\n' >template
    chmod +x entry.sh
    for _ in $(seq "$(some 1 4)"); do PORT=$RANDOM USER_NAME=$(word "") inside ./entry.sh "$(word "$RANDOM")"; done
}
perl_run() {
    for _ in $(seq "$(some 2 6)"); do for _ in $(seq 20); do echo "$(word "") $RANDOM"; done >"in-$RANDOM.log"; done
    inside perl -MPOSIX -MData::Dumper -MFile::Temp=tempfile -e 'my %s; for my $f (glob "in-*.log") { open my $h, "<", $f; while (<$h>) { my ($k, $v) = split; $s{$k} += $v } } my ($t, $n) = tempfile("reportXXXXXXXX", DIR => "."); print $t "$_ $s{$_}\n" for sort keys %s; close $t; rename $n, "report-" . strftime("%Y-%m-%d", localtime) . "-$ARGV[0].txt"' "$RANDOM"
    rm -f in-*.log
}
pyweb_run() {
    cat >app.py <<'IN'
import http.server, json, os, sys, tempfile, threading, uuid, logging
logging.basicConfig(filename="app.log")
class H(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        with tempfile.NamedTemporaryFile(dir="/tmp", delete=False) as f: f.write(body)
        os.replace(f.name, f"uploads/{uuid.uuid4()}.json") if os.stat("uploads").st_dev == os.stat("/tmp").st_dev else (open(f"uploads/{uuid.uuid4()}.json", "wb").write(body), os.unlink(f.name))
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps({"ok": True}).encode())
        logging.warning("got %d", len(body))
    def log_message(self, *a): pass
os.makedirs("uploads", exist_ok=True)
s = http.server.ThreadingHTTPServer(("127.0.0.1", 8082), H)
t = threading.Thread(target=s.serve_forever); t.start()
sys.stdin.readline(); s.shutdown()
IN
    mkdir -p static; for _ in $(seq "$(some 2 8)"); do echo $RANDOM >"static/$(word "$RANDOM").css"; done
    mkfifo stop; inside /usr/bin/python3 app.py <>stop & local child=$!
    until_port 8082
    for page in static/*.css; do curl -s -o /dev/null "http://127.0.0.1:8082/$page"; done
    for _ in $(seq "$(some 1 6)"); do curl -s -o /dev/null -d "x=$RANDOM" http://127.0.0.1:8082/up; done
    echo >stop; wait $child
}
pyetl_run() {
    mkdir -p in out done
    for _ in $(seq "$(some 1 5)"); do { echo a,b; for _ in $(seq 30); do echo "$RANDOM,$(word "")"; done; } >"in/batch-$(some 1 99999).csv"; done
    inside /usr/bin/python3 -c '
import csv, glob, gzip, os, shutil, sqlite3, tempfile, decimal, zoneinfo, datetime
db = sqlite3.connect("etl.db"); db.execute("create table if not exists t(a, b)")
for name in sorted(glob.glob("in/*.csv")):
    with open(name) as f: db.executemany("insert into t values(?, ?)", [(r["a"], r["b"]) for r in csv.DictReader(f)])
    db.commit(); stamp = datetime.datetime.now(zoneinfo.ZoneInfo("Europe/Berlin"))
    with tempfile.TemporaryDirectory() as d:
        with gzip.open(f"{d}/x.gz", "wb") as z: z.write(open(name, "rb").read())
        shutil.move(f"{d}/x.gz", f"out/{os.path.basename(name)}.{stamp:%Y%m%d}.gz")
    os.rename(name, f"done/{os.path.basename(name)}")
'
}
openssl_run() {
    local host; host=$(word "$RANDOM")
    [ -f ca.key ] || { inside openssl genrsa -out ca.key 1024 2>/dev/null; inside openssl req -x509 -new -key ca.key -subj /CN=ca -out ca.crt 2>/dev/null; }
    inside openssl genrsa -out "$host.key" 1024 2>/dev/null; inside openssl req -new -key "$host.key" -subj "/CN=$host" -out "$host.csr"
    inside openssl x509 -req -in "$host.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -out "$host.crt" -days 3 2>/dev/null
    inside openssl verify -CAfile ca.crt "$host.crt" >/dev/null; cp "$host.crt" live.crt; [ $((seed % 2)) = 0 ] && inside openssl x509 -in live.crt -text -noout >"cert-$RANDOM.txt"
}
keygen_run() { for _ in $(seq "$(some 1 4)"); do local k; k=$(word "$RANDOM"); inside ssh-keygen -q -t ed25519 -N "" -f "$here/$k"; inside ssh-keygen -lf "$k.pub" >>fingerprints; inside ssh-keygen -y -f "$k" >/dev/null; done; }
backup_run() {
    mkdir -p data; for _ in $(seq "$(some 3 10)"); do echo $RANDOM >"data/$(word "$RANDOM")"; done
    local day; day=$(date -d "2026-01-01 +$seed days" +%F)
    inside bash -c 'tar czf "backup-$1.tar.gz" data; sha256sum "backup-$1.tar.gz" >"backup-$1.sha256"; ls -t backup-*.tar.gz | tail -n +4 | xargs -r rm' backup "$day"
    [ $((seed % 4)) = 0 ] && mkdir -p restore && inside tar xzf "backup-$day.tar.gz" -C restore; return 0
}
logrotate_run() {
    mkdir -p log; for one in app web; do head -c "$(some 100 4000)" /dev/urandom | base64 >>"log/$one.log"; done
    [ $((seed % 2)) = 0 ] && head -c 300 /dev/zero >"log/$(word "").log"
    printf '%s/log/*.log { su root root\n size 100\n rotate 4\n compress\n missingok\n dateext\n dateformat -%%Y%%m%%d-%%s\n create 0640 root root\n postrotate\n /bin/true\n endscript\n}\n' "$here" >rotate.conf
    chmod 644 rotate.conf; chmod 755 log; inside logrotate -s "$here/state" rotate.conf
}
jq_run() {
    for _ in $(seq "$(some 2 7)"); do echo "{\"id\": $RANDOM, \"name\": \"$(word "")\"}" >"item-$RANDOM.json"; done
    inside bash -c 'jq -s "sort_by(.id)" item-*.json >all.json; jq -r ".[].name" all.json | sort | uniq -c | sort -rn >"top-$(date +%Y%m%d).txt"; rm -f item-*.json' 
}
gpg_run() {
    export GNUPGHOME=$here/keys; [ -d keys ] || { mkdir -m 700 keys; }
    for _ in $(seq "$(some 1 2)"); do echo $RANDOM >"secret-$RANDOM"; done
    for plain in secret-*; do inside gpg --s2k-count 65536 --batch --yes -q --pinentry-mode loopback --passphrase x -c "$plain"; inside gpg --s2k-count 65536 --batch --yes -q --pinentry-mode loopback --passphrase x -d "$plain.gpg" >/dev/null 2>&1; rm "$plain"; done
    inside gpgconf --kill all
}
node_run() {
    cat >app.js <<'IN'
const http = require("http"), fs = require("fs"), path = require("path"), zlib = require("zlib"), crypto = require("crypto");
fs.mkdirSync("cache", {recursive: true});
const s = http.createServer((q, r) => {
  const f = path.join("public", q.url);
  if (!fs.existsSync(f)) { r.statusCode = 404; return r.end(); }
  const b = fs.readFileSync(f), h = crypto.createHash("sha1").update(b).digest("hex");
  fs.writeFileSync(`cache/${h}.gz`, zlib.gzipSync(b)); fs.appendFileSync("access.log", q.url + "\n"); r.end(b);
}).listen(8083, "127.0.0.1");
process.stdin.once("data", () => process.exit(0));
IN
    mkdir -p public; for _ in $(seq "$(some 2 6)"); do echo $RANDOM >"public/$(word "$RANDOM").js"; done
    mkfifo stop; inside node app.js <>stop & local child=$!
    until_port 8083
    for page in public/*; do curl -s -o /dev/null "http://127.0.0.1:8083/${page#public/}"; done
    echo x >stop; wait $child
}
java_run() {
    [ -f App.java ] || cat >App.java <<'IN'
import java.nio.file.*; import java.util.*;
class App { public static void main(String[] a) throws Exception {
  Path out = Files.createDirectories(Path.of("out")); Path t = Files.createTempFile("job", ".tmp");
  for (String s : a) Files.writeString(out.resolve("order-" + s + ".txt"), s + "\n" + new Date());
  Files.writeString(t, "x"); Files.move(t, out.resolve(UUID.randomUUID() + ".done"), StandardCopyOption.REPLACE_EXISTING);
  try (var list = Files.list(out)) { Files.writeString(Path.of("count.txt"), "" + list.count()); } } }
IN
    [ -f App.class ] || { [ -f /srv/.java/App.class ] && cp /srv/.java/App.class . || javac App.java; mkdir -p /srv/.java; cp App.class /srv/.java/; }
    inside java -Xshare:auto -Xmx64m -cp . App "$RANDOM" "$RANDOM" $([ $((seed % 2)) = 0 ] && echo "$RANDOM")
}
rsyslog_run() {
    mkdir -p log spool
    printf 'global(workDirectory="%s/spool")\nmodule(load="imudp")\ninput(type="imudp" address="127.0.0.1" port="5514")\ntemplate(name="byhost" type="string" string="%s/log/%%hostname%%/%%programname%%.log")\n*.* action(type="omfile" dynaFile="byhost")\n' "$here" "$here" >rsyslog.conf
    inside rsyslogd -n -f "$here/rsyslog.conf" -i "$here/rsyslog.pid" & local child=$!
    for _ in $(seq 60); do [ -s rsyslog.pid ] && break; sleep 0.05; done
    for _ in $(seq "$(some 3 10)"); do bash -c "echo '<14>Jan  2 03:04:05 $(word "") $(word ""): hello $RANDOM' >/dev/udp/127.0.0.1/5514"; done
    sleep 0.4
    kill $child; wait $child
}
curl_run() {
    mkdir -p pages; for _ in $(seq "$(some 2 6)"); do echo $RANDOM >"pages/$(word "$RANDOM")"; done
    ( cd pages && exec /usr/bin/python3 -m http.server -b 127.0.0.1 8084 >/dev/null 2>&1 ) & local child=$!
    until_port 8084
    for page in pages/*; do inside curl -s -o "got-${page#pages/}" -D "headers.$RANDOM" "http://127.0.0.1:8084/${page#pages/}"; done
    [ $((seed % 2)) = 0 ] && inside curl -s -c jar -z "$(date -R)" -O "http://localhost:8084/$(ls pages | head -1)"
    kill $child
}
textetl_run() {
    for _ in $(seq "$(some 2 5)"); do for _ in $(seq 30); do echo "$RANDOM;$(word "");$RANDOM"; done >"$(date +%s)-$RANDOM.dat"; done
    cat >run.sh <<'IN'
    for f in *.dat; do awk -F';' '{s[$2]+=$1} END {for (k in s) print k, s[k]}' "$f" | sort -k2n -T . | head -n 5 >"${f%.dat}.sum"; cut -d' ' -f1 "${f%.dat}.sum" | tr a-z A-Z | paste -sd, >>all.csv; done
    gzip -f ./*.dat; sed -i "s/,/;/" all.csv
IN
    inside bash run.sh
}
rsync_run() { mkdir -p a/x b; for _ in $(seq "$(some 3 9)"); do echo $RANDOM >"a/x/$(word "$RANDOM")"; done; inside rsync -a --delete a/ b/; [ $((seed % 2)) = 0 ] && inside rsync -a --backup --suffix=".$RANDOM" a/ b/; return 0; }
cleanup_run() { mkdir -p spool; for _ in $(seq "$(some 4 12)"); do d=$(mktemp -d spool/job.XXXXXX); echo x >"$d/$(word "")"; done; inside bash -c "find spool -name '*[a-m]' -type f -print0 | xargs -0 -r rm; find spool -type d -empty -delete; du -s spool >usage; df . >>usage"; }
lighttpd_run() {
    mkdir -p www; for _ in $(seq "$(some 2 8)"); do echo $RANDOM >"www/$(word "$RANDOM").txt"; done
    printf 'server.document-root="%s/www"\nserver.port=8085\nserver.bind="127.0.0.1"\nserver.errorlog="%s/error.log"\nserver.pid-file="%s/l.pid"\n' "$here" "$here" "$here" >l.conf
    inside lighttpd -D -f l.conf & local child=$!
    until_port 8085; for page in www/*; do curl -s -o /dev/null "http://127.0.0.1:8085/${page#www/}"; done; kill $child; wait $child
}
php_run() { for _ in $(seq "$(some 1 4)"); do inside php -r '$d = []; for ($i = 0; $i < 50; $i++) $d[] = md5($i . $argv[1]); $t = tempnam("/tmp", "php"); file_put_contents($t, serialize($d)); copy($t, "sess_" . md5($argv[1])); unlink($t); file_put_contents("php.log", date("c") . "\n", FILE_APPEND);' "$RANDOM"; done; }
ruby_run() { inside ruby -e 'require "json"; require "tempfile"; require "set"; require "digest"; require "fileutils"; FileUtils.mkdir_p("store"); ARGV.each { |a| t = Tempfile.new("rb"); t.write({a => Digest::SHA256.hexdigest(a)}.to_json); t.close; FileUtils.cp(t.path, "store/#{Digest::SHA256.hexdigest(a)[0,40]}.json") }; File.write("index", Dir["store/*"].size)' $(for _ in $(seq "$(some 1 5)"); do echo $RANDOM; done); }
lua_run() { for _ in $(seq "$(some 1 4)"); do inside lua5.4 -e 'local n = os.tmpname(); local f = io.open(n, "w"); f:write(os.time()); f:close(); local g = io.open("state-" .. arg[1] .. ".lua", "w"); g:write("return " .. arg[1]); g:close(); os.remove(n); print(dofile("state-" .. arg[1] .. ".lua"))' /dev/null "$RANDOM" >>lua.out 2>&1; done; echo "print($RANDOM)" >main.lua; inside lua5.4 main.lua >>lua.out; }
dnsmasq_run() {
    for _ in $(seq 5); do echo "10.0.0.$(some 1 250) $(word "").test"; done >hosts
    inside dnsmasq -k -p 5354 -a 127.0.0.1 -z -C /dev/null -R -h -H "$here/hosts" -x "$here/d.pid" -u nobody --log-facility="$here/d.log" -q & local child=$!
    for _ in $(seq 60); do [ -s d.pid ] && break; sleep 0.05; done
    for _ in $(seq "$(some 2 6)"); do bash -c 'printf "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05amber\x04test\x00\x00\x01\x00\x01" >/dev/udp/127.0.0.1/5354'; done
    sleep 0.2; [ $((seed % 2)) = 0 ] && kill -HUP $child; sleep 0.2; kill $child; wait $child
}
tcl_run() { echo "puts [clock format [clock seconds]]; set f [open out-$RANDOM.txt w]; puts \$f [expr {$RANDOM * 2}]; close \$f; foreach x [glob *.txt] { file stat \$x s }" >job.tcl; inside tclsh job.tcl >>log; [ $((seed % 2)) = 0 ] && inside tclsh job.tcl >>log; return 0; }

"${name}_run"
