import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.Json;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;

/** Debezium Engine as a peer of the example `drain`: a slot's row events as JSON, counted and thrown away. */
public final class DebeziumDrain {
    private DebeziumDrain() {
    }

    /** Arguments: port, database, slot, publication, number of row events after which it ends. */
    public static void main(String[] args) throws Exception {
        long wanted = Long.parseLong(args[4]);
        Properties settings = new Properties();
        settings.setProperty("name", "drain");
        settings.setProperty("connector.class", "io.debezium.connector.postgresql.PostgresConnector");
        settings.setProperty("offset.storage", "org.apache.kafka.connect.storage.MemoryOffsetBackingStore");
        settings.setProperty("topic.prefix", "drain");
        settings.setProperty("database.hostname", "127.0.0.1");
        settings.setProperty("database.port", args[0]);
        settings.setProperty("database.user", "postgres");
        settings.setProperty("database.password", "");
        settings.setProperty("database.dbname", args[1]);
        settings.setProperty("plugin.name", "pgoutput");
        settings.setProperty("slot.name", args[2]);
        settings.setProperty("publication.name", args[3]);
        settings.setProperty("publication.autocreate.mode", "disabled");
        settings.setProperty("snapshot.mode", "no_data");
        settings.setProperty("tombstones.on.delete", "false");

        AtomicLong seen = new AtomicLong();
        AtomicLong bytes = new AtomicLong();
        AtomicReference<String> failure = new AtomicReference<>();
        CountDownLatch done = new CountDownLatch(1);
        DebeziumEngine<ChangeEvent<String, String>> engine = DebeziumEngine.create(Json.class)
                .using(settings)
                .using((success, message, error) -> {
                    if (!success) {
                        failure.set(message + (error == null ? "" : ": " + error));
                    }
                    done.countDown();
                })
                .notifying((records, committer) -> {
                    for (ChangeEvent<String, String> record : records) {
                        if (record.value() != null) {
                            bytes.addAndGet(record.value().length());
                        }
                        seen.incrementAndGet();
                        committer.markProcessed(record);
                    }
                    committer.markBatchFinished();
                    if (seen.get() >= wanted) {
                        done.countDown();
                    }
                })
                .build();
        Thread runner = new Thread(engine, "engine");
        runner.setDaemon(true);
        runner.start();
        done.await();
        if (seen.get() < wanted) {
            System.err.println("ended after " + seen + " of " + wanted + " events: " + failure.get());
            System.exit(1);
        }
        System.err.println(seen + " events, " + bytes + " characters");
        // What it still has to tidy up is no part of what is measured.
        Runtime.getRuntime().halt(0);
    }
}
