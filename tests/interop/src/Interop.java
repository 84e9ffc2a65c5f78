import com.alibaba.fastjson.JSON;
import com.alibaba.fastjson.serializer.SerializerFeature;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.lang.reflect.Constructor;
import java.net.Inet6Address;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Deque;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.rocketmq.common.BrokerConfig;
import org.apache.rocketmq.common.MixAll;
// MessageExtBrokerInner lies in the one or the other, as the version has it.
import org.apache.rocketmq.common.message.*;
import org.apache.rocketmq.store.*;
import org.apache.rocketmq.store.config.BrokerRole;
import org.apache.rocketmq.store.config.MessageStoreConfig;
import org.apache.rocketmq.store.stats.BrokerStatsManager;

/** Apache RocketMQ's own store on a directory that duralog uses too. */
public final class Interop {
    private static final String USAGE = """
        usage: Interop COMMAND DIR [ARGUMENT]... [OPTION=VALUE]...

          list DIR                       every message, queue by queue
            [--keys]                       and what the key index has for each of their keys
          query DIR [TOPIC KEY]...       what the key index has, the newest MAX
            [--max MAX]                    (all)
          checkpoint DIR                 the times in RocketMQ's checkpoint; nothing is opened
          append DIR COUNT SEED          stores COUNT messages, which SEED decides
            [--threads T]                  from so many threads (1)
            [--kill-after N]               and dies in the middle of it, N of them stored
          reput DIR TOPIC QUEUE OFFSET   stores a message once more, properties as they lie there
          hold DIR                       says READY and keeps the store until standard input ends
          ha-master DIR PORT             a master on PORT, or on any if that is 0
          ha-slave DIR HOST:PORT         a slave of the master there
            Both do what standard input says; see Replica.
          broker DIR                     as much of a broker as there is of this version
            Does what standard input says; see Master, and Broker for 5.x.

        A line of JSON for every message and every key; OPTION is one of MessageStoreConfig, such as
        mappedFileSizeCommitLog=65536; for a broker of 5.x also one of BrokerConfig.""";

    /** Bodies up to this length are printed, of longer ones the SHA-256. */
    private static final int BODY_PRINTED = 256;
    private static final int MAGIC_V2 = 0xdaa320ab;
    private static final int FETCH = 32;
    /** More than any test stores with one key. */
    private static final int QUERY_MAX = 100_000;
    static final long PATIENCE_MS = 60_000;

    private static final FileOutputStream OUT = new FileOutputStream(FileDescriptor.out);

    public static void main(String[] args) throws Exception {
        // Loggers find another place for what they say.
        System.setOut(new PrintStream(new FileOutputStream(FileDescriptor.err), true));
        // A full disk is not what is tested, and nothing may be deleted for it.
        System.setProperty("rocketmq.broker.diskSpaceWarningLevelRatio", "0.99");
        System.setProperty("rocketmq.broker.diskSpaceCleanForciblyRatio", "0.99");
        int status;
        try {
            status = run(args);
        } catch (Throwable failure) {
            failure.printStackTrace();
            status = 1;
        }
        // Threads of a store that did not start would keep the process alive.
        System.exit(status);
    }

    private static int run(String[] args) throws Exception {
        Deque<String> words = new ArrayDeque<>();
        Properties options = new Properties();
        int threads = 1;
        long killAfter = Long.MAX_VALUE;
        int max = QUERY_MAX;
        boolean keys = false;
        Command command;
        try {
            for (int i = 0; i < args.length; i++) {
                int equals = args[i].indexOf('=');
                if (args[i].equals("--threads")) {
                    threads = Integer.parseInt(args[++i]);
                } else if (args[i].equals("--kill-after")) {
                    killAfter = Long.parseLong(args[++i]);
                } else if (args[i].equals("--max")) {
                    max = Integer.parseInt(args[++i]);
                } else if (args[i].equals("--keys")) {
                    keys = true;
                } else if (equals > 0 && i > 1) {
                    options.setProperty(args[i].substring(0, equals), args[i].substring(equals + 1));
                } else {
                    words.add(args[i]);
                }
            }
            command = command(words.remove(), words.remove(), words, threads, killAfter, max, keys,
                options);
            if (!words.isEmpty()) {
                throw new IllegalArgumentException(words.toString());
            }
        } catch (RuntimeException wrong) {
            System.err.println(USAGE);
            return 2;
        }
        command.run();
        return 0;
    }

    private interface Command {
        void run() throws Exception;
    }

    private static Command command(String name, String dir, Deque<String> words, int threads,
            long killAfter, int max, boolean keys, Properties options) {
        switch (name) {
            case "list":
                return () -> with(dir, options, store -> list(store, keys));
            case "query": {
                List<String> queries = new ArrayList<>(words);
                words.clear();
                return () -> with(dir, options, store -> {
                    for (int i = 0; i < queries.size(); i += 2) {
                        query(store, queries.get(i), queries.get(i + 1), max);
                    }
                });
            }
            case "checkpoint":
                return () -> checkpoint(dir);
            case "append": {
                long count = Long.parseLong(words.remove());
                long seed = Long.parseLong(words.remove());
                return () -> with(dir, options, store -> append(store, count, seed, threads, killAfter));
            }
            case "reput": {
                String topic = words.remove();
                int queue = Integer.parseInt(words.remove());
                long offset = Long.parseLong(words.remove());
                return () -> with(dir, options, store -> reput(store, topic, queue, offset));
            }
            case "ha-master": {
                String port = words.remove();
                return () -> Replica.master(dir, port, options);
            }
            case "ha-slave": {
                String master = words.remove();
                return () -> Replica.slave(dir, master, options);
            }
            case "broker":
                return () -> Master.of(dir, options).serve();
            case "hold":
                return () -> with(dir, options, store -> {
                    print("READY");
                    while (System.in.read() >= 0) {
                    }
                });
            default:
                throw new IllegalArgumentException(name);
        }
    }

    private interface Work {
        void on(DefaultMessageStore store) throws Exception;
    }

    private static void with(String dir, Properties options, Work work) throws Exception {
        DefaultMessageStore store = open(dir, options);
        work.on(store);
        store.shutdown();
    }

    static MessageStoreConfig config(String dir, Properties options) {
        MessageStoreConfig config = new MessageStoreConfig();
        config.setStorePathRootDir(dir);
        config.setStorePathCommitLog(dir + "/commitlog");
        config.setHaListenPort(0);
        config.setFileReservedTime(24 * 365 * 100);
        config.setDiskMaxUsedSpaceRatio(99);
        config.setCleanFileForciblyEnable(false);
        MixAll.properties2Object(options, config);
        return config;
    }

    /** As a broker does it: load, which recovers, then start, which locks. */
    static DefaultMessageStore open(String dir, Properties options) throws Exception {
        MessageStoreConfig config = config(dir, options);
        MessageArrivingListener nobody = (topic, queue, offset, tags, time, bits, properties) -> { };
        BrokerStatsManager stats = new BrokerStatsManager("interop", false);
        BrokerConfig broker = new BrokerConfig();
        if (config.getBrokerRole() == BrokerRole.SLAVE) {
            // The dispatcher of broker 0 takes half a message for damage and passes over it.
            broker.setBrokerId(1);
        }
        // 5.x also asks for the topics' settings.
        Object[] arguments = {config, stats, nobody, broker, new ConcurrentHashMap<>()};
        Constructor<?> constructor = DefaultMessageStore.class.getConstructors()[0];
        DefaultMessageStore store = (DefaultMessageStore) constructor.newInstance(
            Arrays.copyOf(arguments, constructor.getParameterCount()));
        if (!store.load()) {
            throw new IOException("RocketMQ does not load " + dir);
        }
        store.start();
        await(() -> store.dispatchBehindBytes() <= 0);
        return store;
    }

    interface Condition {
        boolean holds() throws Exception;
    }

    static void await(Condition done) throws Exception {
        long deadline = System.currentTimeMillis() + PATIENCE_MS;
        while (!done.holds()) {
            if (System.currentTimeMillis() > deadline) {
                throw new IOException("not within " + PATIENCE_MS + " ms");
            }
            Thread.sleep(1);
        }
    }

    private static void list(DefaultMessageStore store, boolean keys) throws Exception {
        Map<String, Set<String>> queries = new TreeMap<>();
        everything(store, (record, tagsCode) -> {
            print(describe(record, tagsCode));
            keys(record, queries);
        });
        for (Map.Entry<String, Set<String>> topic : queries.entrySet()) {
            for (String key : keys ? topic.getValue() : Set.<String>of()) {
                query(store, topic.getKey(), key, QUERY_MAX);
            }
        }
    }

    /** Every message, queue by queue, and what its queue says of its tags. */
    static void everything(DefaultMessageStore store, Reader reader) throws Exception {
        for (Map.Entry<String, ? extends Map<Integer, ?>> topic
                : new TreeMap<>(store.getConsumeQueueTable()).entrySet()) {
            for (Map.Entry<Integer, ?> queue : new TreeMap<>(topic.getValue()).entrySet()) {
                long first = store.getMinOffsetInQueue(topic.getKey(), queue.getKey());
                long end = store.getMaxOffsetInQueue(topic.getKey(), queue.getKey());
                read(store, topic.getKey(), queue.getKey(), first, end, (record, offset) ->
                    reader.on(record, tagsCode((ConsumeQueue) queue.getValue(), offset)));
            }
        }
    }

    interface Reader {
        void on(ByteBuffer record, long number) throws Exception;
    }

    /** Every message of a part of a queue. */
    static void read(DefaultMessageStore store, String topic, int queueId, long first, long end,
            Reader reader) throws Exception {
        long next = first;
        while (next < end) {
            int count = (int) Math.min(FETCH, end - next);
            GetMessageResult found = store.getMessage("interop", topic, queueId, next, count, null);
            if (found.getStatus() != GetMessageStatus.FOUND) {
                throw new IOException(topic + "/" + queueId + "/" + next + ": " + found.getStatus());
            }
            for (ByteBuffer record : found.getMessageBufferList()) {
                reader.on(record, next);
                next++;
            }
            if (found.getNextBeginOffset() != next) {
                throw new IOException(topic + "/" + queueId + ": no message before " + next);
            }
            found.release();
        }
    }

    static long tagsCode(ConsumeQueue queue, long offset) {
        SelectMappedBufferResult unit = queue.getIndexBuffer(offset);
        try {
            return unit.getByteBuffer().getLong(unit.getByteBuffer().position() + 12);
        } finally {
            unit.release();
        }
    }

    /** Adds the keys by which the message can be found. */
    private static void keys(ByteBuffer record, Map<String, Set<String>> queries) throws IOException {
        MessageExt message = decode(record);
        Set<String> keys = queries.computeIfAbsent(message.getTopic(), topic -> new TreeSet<>());
        String unique = message.getProperty("UNIQ_KEY");
        if (unique != null) {
            keys.add(unique);
        }
        if (message.getKeys() != null) {
            keys.addAll(Arrays.asList(message.getKeys().split(" ")));
        }
    }

    /** What RocketMQ finds: messages whose key has the same hash, too. */
    private static void query(DefaultMessageStore store, String topic, String key, int max)
            throws Exception {
        QueryMessageResult found = store.queryMessage(topic, key, max, 0, Long.MAX_VALUE);
        List<Long> offsets = new ArrayList<>();
        for (ByteBuffer record : found.getMessageBufferList()) {
            offsets.add(decode(record).getCommitLogOffset());
        }
        found.release();
        Map<String, Object> line = new LinkedHashMap<>();
        line.put("topic", topic);
        line.put("key", key);
        line.put("offsets", offsets);
        print(line);
    }

    private static void checkpoint(String dir) throws Exception {
        StoreCheckpoint checkpoint = new StoreCheckpoint(dir + "/checkpoint");
        Map<String, Object> line = new LinkedHashMap<>();
        line.put("physic", checkpoint.getPhysicMsgTimestamp());
        line.put("logics", checkpoint.getLogicsMsgTimestamp());
        line.put("index", checkpoint.getIndexMsgTimestamp());
        line.put("min", checkpoint.getMinTimestamp());
        print(line);
    }

    private static void append(DefaultMessageStore store, long count, long seed, int threads,
            long killAfter) throws Exception {
        AtomicLong next = new AtomicLong();
        AtomicLong acked = new AtomicLong();
        List<Throwable> failures = new ArrayList<>();
        List<Thread> running = new ArrayList<>();
        for (int i = 0; i < threads; i++) {
            Thread thread = new Thread(() -> {
                try {
                    for (long n = next.getAndIncrement(); n < count; n = next.getAndIncrement()) {
                        put(store, message(seed, n));
                        if (acked.incrementAndGet() == killAfter) {
                            Runtime.getRuntime().halt(137);
                        }
                    }
                } catch (Throwable failure) {
                    synchronized (failures) {
                        failures.add(failure);
                    }
                }
            });
            running.add(thread);
            thread.start();
        }
        for (Thread thread : running) {
            thread.join();
        }
        if (!failures.isEmpty()) {
            throw new IOException("a put failed", failures.get(0));
        }
    }

    static MessageExtBrokerInner message(long seed, long n) throws IOException {
        Random random = new Random(seed * 1_000_003 + n);
        MessageExtBrokerInner message = new MessageExtBrokerInner();
        message.setTopic(new String[] {"orders", "payments", "%RETRY%billing"}[random.nextInt(3)]);
        message.setQueueId(random.nextInt(4));
        byte[] body = new byte[random.nextInt(16) == 0 ? 4000 : random.nextInt(600)];
        random.nextBytes(body);
        message.setBody(body);
        message.setFlag(random.nextInt());
        message.setReconsumeTimes(random.nextInt(16));
        message.setPreparedTransactionOffset(random.nextInt(4) == 0 ? random.nextLong() : 0);
        message.setBornTimestamp(1_700_000_000_000L + n);
        message.setBornHost(host(random));
        message.setStoreHost(host(random));
        // A body that says it is compressed, and one from a transaction.
        message.setSysFlag(random.nextInt(8) == 0 ? 0x301 : random.nextInt(8) == 0 ? 0x8 : 0);
        if (random.nextInt(4) > 0) {
            message.setTags(new String[] {"paid", "late", "grün", "取消"}[random.nextInt(4)]);
        }
        // Words that Java hashes alike, for collisions.
        message.setKeys("key-" + seed + "-" + n + " shared-" + random.nextInt(5) + " "
            + (random.nextBoolean() ? "Aa" : "BB"));
        MessageAccessor.putProperty(message, "UNIQ_KEY", String.format("%016X%016X", seed, n));
        if (random.nextInt(3) == 0) {
            MessageAccessor.putProperty(message, "note", "ä 😀 " + "x".repeat(random.nextInt(300)));
        }
        message.setPropertiesString(MessageDecoder.messageProperties2String(message.getProperties()));
        return message;
    }

    private static SocketAddress host(Random random) throws IOException {
        byte[] ip = new byte[random.nextInt(3) == 0 ? 16 : 4];
        random.nextBytes(ip);
        return new InetSocketAddress(InetAddress.getByAddress(ip), 1 + random.nextInt(65535));
    }

    private static void reput(DefaultMessageStore store, String topic, int queueId, long offset)
            throws Exception {
        GetMessageResult found = store.getMessage("interop", topic, queueId, offset, 1, null);
        if (found.getMessageCount() != 1) {
            throw new IOException("no such message: " + found.getStatus());
        }
        ByteBuffer record = found.getMessageBufferList().get(0);
        MessageExt stored = decode(record);
        MessageExtBrokerInner message = new MessageExtBrokerInner();
        message.setTopic(stored.getTopic());
        message.setQueueId(stored.getQueueId());
        message.setBody(stored.getBody() == null ? new byte[0] : stored.getBody());
        message.setFlag(stored.getFlag());
        message.setSysFlag(stored.getSysFlag());
        message.setReconsumeTimes(stored.getReconsumeTimes() + 1);
        message.setPreparedTransactionOffset(stored.getPreparedTransactionOffset());
        message.setBornTimestamp(stored.getBornTimestamp());
        message.setBornHost(stored.getBornHost());
        message.setStoreHost(stored.getStoreHost());
        MessageAccessor.setProperties(message, stored.getProperties());
        // In their order, so that the last one stays the last.
        message.setPropertiesString(new String(properties(record), StandardCharsets.UTF_8));
        found.release();
        put(store, message);
    }

    /** Stores a message and says so once the store does. */
    private static void put(DefaultMessageStore store, MessageExtBrokerInner message) throws Exception {
        PutMessageResult result = store.putMessage(message);
        if (result.getPutMessageStatus() != PutMessageStatus.PUT_OK) {
            throw new IOException("not stored: " + result.getPutMessageStatus());
        }
        AppendMessageResult appended = result.getAppendMessageResult();
        Map<String, Object> line = new LinkedHashMap<>();
        line.put("physicalOffset", appended.getWroteOffset());
        line.put("size", appended.getWroteBytes());
        line.put("queueOffset", appended.getLogicsOffset());
        line.put("storeTimestamp", appended.getStoreTimestamp());
        content(line, message);
        print(line);
    }

    /** A message as it lies in the store. */
    static Map<String, Object> describe(ByteBuffer record, Long tagsCode) throws Exception {
        MessageExt message = decode(record);
        Map<String, Object> line = new LinkedHashMap<>();
        line.put("physicalOffset", message.getCommitLogOffset());
        line.put("size", message.getStoreSize());
        line.put("queueOffset", message.getQueueOffset());
        line.put("storeTimestamp", message.getStoreTimestamp());
        content(line, message);
        line.put("bodyCRC", message.getBodyCRC());
        line.put("propertiesHex", HexFormat.of().formatHex(properties(record)));
        line.put("tagsCode", tagsCode);
        return line;
    }

    /** What the sender decides. */
    private static void content(Map<String, Object> line, MessageExt message) throws Exception {
        line.put("topic", message.getTopic());
        line.put("queueId", message.getQueueId());
        line.put("flag", message.getFlag());
        line.put("sysFlag", message.getSysFlag());
        line.put("bornTimestamp", message.getBornTimestamp());
        line.put("bornHost", name(message.getBornHost()));
        line.put("storeHost", name(message.getStoreHost()));
        line.put("reconsumeTimes", message.getReconsumeTimes());
        line.put("preparedTransactionOffset", message.getPreparedTransactionOffset());
        byte[] body = message.getBody() == null ? new byte[0] : message.getBody();
        line.put("bodyLength", body.length);
        if (body.length <= BODY_PRINTED) {
            line.put("bodyHex", HexFormat.of().formatHex(body));
        } else {
            byte[] digest = MessageDigest.getInstance("SHA-256").digest(body);
            line.put("bodySha256", HexFormat.of().formatHex(digest));
        }
        line.put("tags", message.getTags());
        line.put("keys", message.getKeys());
        line.put("properties", message.getProperties());
    }

    static MessageExt decode(ByteBuffer record) throws IOException {
        MessageExt message = MessageDecoder.decode(record.duplicate(), true, false);
        if (message == null) {
            throw new IOException("a record does not decode");
        }
        return message;
    }

    /** The properties of a record, byte for byte. */
    private static byte[] properties(ByteBuffer record) {
        ByteBuffer bytes = record.slice();
        int size = bytes.getInt(0);
        int sysFlag = bytes.getInt(36);
        int hosts = ((sysFlag & 0x10) == 0 ? 8 : 20) + ((sysFlag & 0x20) == 0 ? 8 : 20);
        int at = 68 + hosts;
        at += 4 + bytes.getInt(at);
        at += bytes.getInt(4) == MAGIC_V2 ? 2 + bytes.getShort(at) : 1 + bytes.get(at);
        byte[] properties = new byte[size - at - 2];
        bytes.get(at + 2, properties);
        return properties;
    }

    private static String name(SocketAddress address) {
        InetSocketAddress inet = (InetSocketAddress) address;
        String ip = inet.getAddress().getHostAddress();
        boolean v6 = inet.getAddress() instanceof Inet6Address;
        return (v6 ? "[" + ip + "]" : ip) + ":" + inet.getPort();
    }

    static void print(Map<String, Object> line) throws IOException {
        print(JSON.toJSONString(line, SerializerFeature.WriteMapNullValue));
    }

    /** One write, so that lines of several threads stay apart and none is lost with the process. */
    private static synchronized void print(String line) throws IOException {
        OUT.write((line + "\n").getBytes(StandardCharsets.UTF_8));
    }
}
