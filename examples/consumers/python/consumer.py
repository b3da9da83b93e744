# SPDX-License-Identifier: Apache-2.0
"""Reads Hauberk's alerts or telemetry from Kafka and prints one JSON object a line. Needs nothing of Hauberk's.

    pip install 'aiokafka[zstd]' msgspec
    python consumer.py --bootstrap kafka:9092 alerts
    python consumer.py --bootstrap kafka:9093 --ca ca.pem --user soc --password-file soc.pass telemetry

What the positions mean is in docs/reference/topics.md and in `hauberk topic schema -f asyncapi`; they are only ever added to.
"""

import argparse
import asyncio
import json
import ssl
import struct
import sys

import msgspec
from aiokafka import AIOKafkaConsumer

VERSION = 1
"""The newest version of a frame that this program reads."""

# One event of a behaviour, 64 bytes: 8 of the ring, then id, time, sequence, process, pid, ppid, pid and ppid in the container.
ROW = struct.Struct("<8xQQQQIIIIiI")
# A behaviour that was counted instead of sent event by event: id, count, first and last time, first sequence, process.
FOLDED = struct.Struct("<QQQQQQ")

OPERATIONS = {
    1: "EXEC", 2: "EXIT", 10: "OPEN", 11: "CREATE", 12: "UNLINK", 13: "RENAME", 14: "MKDIR", 15: "RMDIR", 16: "LINK",
    17: "SYMLINK", 18: "CHMOD", 19: "CHOWN", 20: "TRUNCATE", 21: "MOUNT", 22: "UMOUNT", 23: "MKNOD", 30: "SOCKET",
    31: "BIND", 32: "LISTEN", 33: "CONNECT", 34: "ACCEPT", 35: "SEND", 36: "DNS", 40: "SETUID", 41: "SETGID",
    42: "PTRACE", 43: "CAPABLE", 44: "MODULE", 45: "BPF", 46: "MMAP", 47: "CALL", 50: "DEVICE",
}  # fmt: skip


def expand(value):
    """The events of one telemetry record, oldest first, then those that were counted. ValueError: a newer version."""
    header, identities, table, processes, rows, folded = msgspec.msgpack.decode(value)[:6]
    version, node, boot, _run, _number, clock = header[:6]
    if version > VERSION:
        raise ValueError(f"expected a frame of version {VERSION} at most, got {version}; get a newer consumer")
    known = {entry[0][0]: entry for entry in table}
    arguments = {process[0]: process[3] for process in processes}

    def event(ident, at, sequence, process, pid, count):
        behaviour, identity, _verdict = known[ident][:3]
        whose = identities[identity]
        operation = OPERATIONS.get(behaviour[1], str(behaviour[1]))
        # An exec is told with the arguments of the image it made, whose id is its own sequence.
        image = sequence if operation == "EXEC" and sequence in arguments else process
        return {
            "id": f"{node}:{boot}:{sequence}", "time": at + clock, "node": node, "container": whose[8], "namespace": whose[11],
            "operation": operation, "executable": behaviour[11], "resource": behaviour[13], "address": behaviour[22],
            "port": behaviour[23], "result": behaviour[3], "pid": pid, "arguments": arguments.get(image, []), "count": count,
        }  # fmt: skip

    for ident, at, sequence, process, pid, *_ in ROW.iter_unpack(rows):
        # What is not in the table was not asked to be logged.
        if ident in known:
            yield event(ident, at, sequence, process, pid, 1)
    for ident, count, first, _last, sequence, process in FOLDED.iter_unpack(folded):
        if ident in known:
            yield event(ident, first, sequence, process, 0, count)


def alert(record):
    """A CloudEvent in binary mode: attributes are headers, the data is the value."""
    event = {name[3:]: value.decode() for name, value in record.headers if name.startswith("ce_")}
    return {"event": event, "alert": json.loads(record.value)}


def options(given):
    """What a client needs for the listener that was named."""
    found = {"bootstrap_servers": given.bootstrap}
    if given.ca or given.cert:
        found |= {"security_protocol": "SSL", "ssl_context": ssl.create_default_context(cafile=given.ca)}
        if given.cert:
            found["ssl_context"].load_cert_chain(given.cert, given.key)
    if given.user:
        with open(given.password_file) as file:
            password = file.read().strip()
        found |= {
            "security_protocol": "SASL_SSL" if given.ca else "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": given.user, "sasl_plain_password": password,
        }  # fmt: skip
    return found


async def main(given):
    consumer = AIOKafkaConsumer(
        f"{given.prefix}{given.topic}.v1", group_id=given.group, auto_offset_reset="earliest", enable_auto_commit=False,
        **options(given),
    )  # fmt: skip
    await consumer.start()
    left = given.records
    try:
        while left != 0:
            batches = await consumer.getmany(timeout_ms=1000)
            for record in (record for batch in batches.values() for record in batch):
                try:
                    for event in [alert(record)] if given.topic == "alerts" else expand(record.value):
                        print(json.dumps(event))
                except ValueError as error:
                    print(f"{record.topic}/{record.partition}/{record.offset}: {error}", file=sys.stderr)
                left -= 1
            sys.stdout.flush()
            if batches:
                # Only now: a crash repeats events, whose ids tell them apart, and loses none.
                await consumer.commit()
    finally:
        await consumer.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print Hauberk's alerts or telemetry as JSON lines.")
    parser.add_argument("topic", choices=("alerts", "telemetry"))
    parser.add_argument("--bootstrap", default="localhost:9092")
    parser.add_argument("--prefix", default="hauberk.")
    parser.add_argument(
        "--group", default="example-consumer", help="consumer group: where reading goes on after a restart"
    )
    parser.add_argument("--records", type=int, default=-1, help="end after so many records")
    parser.add_argument("--ca", help="CA of the brokers: TLS")
    parser.add_argument("--cert", help="certificate of this client")
    parser.add_argument("--key", help="its key")
    parser.add_argument("--user", help="SCRAM account")
    parser.add_argument("--password-file", help="its password")
    asyncio.run(main(parser.parse_args()))
