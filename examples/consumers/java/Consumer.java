// SPDX-License-Identifier: Apache-2.0
// Reads Hauberk's alerts or telemetry from Kafka and prints one JSON object a line. Java 17.
//
//     mvn -q dependency:copy-dependencies -DoutputDirectory=jars
//     java -cp 'jars/*' Consumer.java alerts kafka:9092
//     java -cp 'jars/*' Consumer.java telemetry kafka:9093 client.properties
//
// client.properties holds what any Kafka client is told: security.protocol, sasl.jaas.config, ssl.truststore.location, and for
// this one `prefix` (hauberk.) and `records` (end after so many). What the positions of arrays mean is in
// docs/reference/topics.md and in `hauberk topic schema -f asyncapi`; they are only ever added to.

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.FileReader;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.msgpack.jackson.dataformat.MessagePackFactory;

public class Consumer {
    /** The newest version of a frame that this program reads. */
    static final int VERSION = 1;

    /** Bytes of a row: 8 of the ring, then id, time, sequence, process (8 each), pid, and what is not shown here. */
    static final int ROW = 64;

    /** Bytes of a behaviour that was counted: id, count, first and last time, first sequence, process. */
    static final int FOLDED = 48;

    static final Map<Integer, String> OPERATIONS = Map.ofEntries(
        Map.entry(1, "EXEC"), Map.entry(2, "EXIT"), Map.entry(10, "OPEN"), Map.entry(11, "CREATE"), Map.entry(12, "UNLINK"),
        Map.entry(13, "RENAME"), Map.entry(14, "MKDIR"), Map.entry(15, "RMDIR"), Map.entry(16, "LINK"),
        Map.entry(17, "SYMLINK"), Map.entry(18, "CHMOD"), Map.entry(19, "CHOWN"), Map.entry(20, "TRUNCATE"),
        Map.entry(21, "MOUNT"), Map.entry(22, "UMOUNT"), Map.entry(23, "MKNOD"), Map.entry(30, "SOCKET"),
        Map.entry(31, "BIND"), Map.entry(32, "LISTEN"), Map.entry(33, "CONNECT"), Map.entry(34, "ACCEPT"),
        Map.entry(35, "SEND"), Map.entry(36, "DNS"), Map.entry(40, "SETUID"), Map.entry(41, "SETGID"),
        Map.entry(42, "PTRACE"), Map.entry(43, "CAPABLE"), Map.entry(44, "MODULE"), Map.entry(45, "BPF"),
        Map.entry(46, "MMAP"), Map.entry(47, "CALL"), Map.entry(50, "DEVICE"));

    static final ObjectMapper JSON = new ObjectMapper();
    static final ObjectMapper MSGPACK = new ObjectMapper(new MessagePackFactory());

    /** The tables of one telemetry record, and what an event of them looks like. */
    static class Frame {
        final String node;
        final String boot;
        final long clock;
        final JsonNode identities;
        final byte[] rows;
        final byte[] folded;
        final Map<Long, JsonNode> known = new HashMap<>();
        final Map<Long, JsonNode> arguments = new HashMap<>();

        Frame(byte[] value) throws Exception {
            JsonNode frame = MSGPACK.readTree(value);
            JsonNode header = frame.get(0);
            if (header.get(0).asInt() > VERSION) {
                throw new IllegalArgumentException("expected a frame of version " + VERSION + " at most, got "
                    + header.get(0).asInt() + "; get a newer consumer");
            }
            node = header.get(1).asText();
            boot = header.get(2).asText();
            clock = header.get(5).asLong();
            identities = frame.get(1);
            // Ids are 64 bits without a sign; as bits of a long they are the same keys.
            for (JsonNode entry : frame.get(2)) {
                known.put(entry.get(0).get(0).bigIntegerValue().longValue(), entry);
            }
            for (JsonNode process : frame.get(3)) {
                arguments.put(process.get(0).bigIntegerValue().longValue(), process.get(3));
            }
            rows = frame.get(4).binaryValue();
            folded = frame.size() > 5 ? frame.get(5).binaryValue() : new byte[0];
        }

        List<ObjectNode> events() {
            List<ObjectNode> found = new ArrayList<>();
            ByteBuffer row = ByteBuffer.wrap(rows).order(ByteOrder.LITTLE_ENDIAN);
            for (int at = 0; at < rows.length; at += ROW) {
                add(found, row.getLong(at + 8), row.getLong(at + 16), row.getLong(at + 24), row.getLong(at + 32),
                    row.getInt(at + 40), 1);
            }
            ByteBuffer many = ByteBuffer.wrap(folded).order(ByteOrder.LITTLE_ENDIAN);
            for (int at = 0; at < folded.length; at += FOLDED) {
                add(found, many.getLong(at), many.getLong(at + 16), many.getLong(at + 32), many.getLong(at + 40), 0,
                    many.getLong(at + 8));
            }
            return found;
        }

        void add(List<ObjectNode> found, long id, long time, long sequence, long process, int pid, long count) {
            JsonNode entry = known.get(id);
            if (entry == null) {
                return; // what is not in the table was not asked to be logged
            }
            JsonNode behaviour = entry.get(0);
            JsonNode whose = identities.get(entry.get(1).asInt());
            int number = behaviour.get(1).asInt();
            String operation = OPERATIONS.getOrDefault(number, Integer.toString(number));
            // An exec is told with the arguments of the image it made, whose id is its own sequence.
            long image = operation.equals("EXEC") && arguments.containsKey(sequence) ? sequence : process;
            ObjectNode event = JSON.createObjectNode();
            event.put("id", node + ":" + boot + ":" + Long.toUnsignedString(sequence));
            event.put("time", time + clock);
            event.put("node", node);
            event.put("container", whose.path(8).asText());
            event.put("namespace", whose.path(11).asText());
            event.put("operation", operation);
            event.put("executable", behaviour.path(11).asText());
            event.put("resource", behaviour.path(13).asText());
            event.put("address", behaviour.path(22).asText());
            event.put("port", behaviour.path(23).asInt());
            event.put("result", behaviour.path(3).asInt());
            event.put("pid", Integer.toUnsignedLong(pid));
            JsonNode words = arguments.get(image);
            event.set("arguments", words == null ? JSON.createArrayNode() : (ArrayNode) words);
            event.put("count", count);
            found.add(event);
        }
    }

    /** A CloudEvent in binary mode: attributes are headers, the data is the value. */
    static ObjectNode alert(ConsumerRecord<byte[], byte[]> record) throws Exception {
        ObjectNode line = JSON.createObjectNode();
        ObjectNode event = line.putObject("event");
        for (Header header : record.headers()) {
            if (header.key().startsWith("ce_")) {
                event.put(header.key().substring(3), new String(header.value(), StandardCharsets.UTF_8));
            }
        }
        line.set("alert", JSON.readTree(record.value()));
        return line;
    }

    public static void main(String[] given) throws Exception {
        if (given.length < 2) {
            System.err.println("usage: Consumer alerts|telemetry HOST:PORT [client.properties]");
            System.exit(2);
        }
        Properties settings = new Properties();
        settings.put("group.id", "example-consumer");
        settings.put("auto.offset.reset", "earliest");
        if (given.length > 2) {
            settings.load(new FileReader(given[2], StandardCharsets.UTF_8));
        }
        settings.put("bootstrap.servers", given[1]);
        settings.put("enable.auto.commit", "false");
        String prefix = String.valueOf(settings.getOrDefault("prefix", "hauberk."));
        long left = Long.parseLong(String.valueOf(settings.getOrDefault("records", "-1")));
        settings.remove("prefix");
        settings.remove("records");
        ByteArrayDeserializer bytes = new ByteArrayDeserializer();
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings, bytes, bytes)) {
            consumer.subscribe(List.of(prefix + given[0] + ".v1"));
            while (left != 0) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                    try {
                        List<ObjectNode> lines =
                            given[0].equals("alerts") ? List.of(alert(record)) : new Frame(record.value()).events();
                        for (ObjectNode line : lines) {
                            System.out.println(JSON.writeValueAsString(line));
                        }
                    } catch (IllegalArgumentException error) {
                        System.err.println(record.topic() + "/" + record.partition() + "/" + record.offset() + ": "
                            + error.getMessage());
                    }
                    left--;
                }
                // Only now: a crash repeats events, whose ids tell them apart, and loses none.
                consumer.commitSync();
            }
        }
    }
}
