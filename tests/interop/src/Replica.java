import java.io.IOException;
import java.lang.reflect.Field;
import java.net.InetSocketAddress;
import java.nio.channels.ServerSocketChannel;
import java.util.ArrayList;
import java.util.Deque;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Random;
import java.util.TreeMap;
import java.util.concurrent.CompletableFuture;
import org.apache.rocketmq.common.ServiceThread;
import org.apache.rocketmq.common.message.*;
import org.apache.rocketmq.store.*;
import org.apache.rocketmq.store.config.BrokerRole;

/**
 * A store that replicates and does what standard input says; see Conversation.
 *
 * <pre>
 * (at first)                    {"port"}: where it listens for slaves
 * put COUNT SIZE                stores COUNT messages with bodies of SIZE bytes; the same ones at the
 *                                 same place of a log
 *                                 {"begin", "end", "statuses": {STATUS: how many}}
 * offset [MAX]                  once the log ends at MAX or after it, and all of it is in the queues
 *                                 {"min", "max"}
 * slaves [COUNT [ACKED]]        once so many are connected and have reported, and ACKED is acked
 *                                 {"connections", "acked", "slaves": [{"requested", "acked"}]}
 * get TOPIC QUEUE OFFSET COUNT  {"max", "messages": [as `list` prints them]}
 * flush                         {"flushed"}
 * wake                          a slave that waits before it connects again does so now; {}
 * close                         closes the store and ends; {}
 * </pre>
 */
final class Replica {
    private final DefaultMessageStore store;

    private Replica(DefaultMessageStore store) {
        this.store = store;
    }

    static void master(String dir, String port, Properties options) throws Exception {
        options.putIfAbsent("brokerRole", BrokerRole.ASYNC_MASTER.name());
        options.setProperty("haListenPort", port);
        new Replica(Interop.open(dir, options)).serve();
    }

    static void slave(String dir, String master, Properties options) throws Exception {
        options.setProperty("brokerRole", BrokerRole.SLAVE.name());
        options.setProperty("haMasterAddress", master);
        Replica replica = new Replica(Interop.open(dir, options));
        // As the broker does it: a store does not read that setting. 5.x has no client before the start.
        replica.store.updateHaMasterAddress(replica.store.getMessageStoreConfig().getHaMasterAddress());
        replica.wake();
        replica.serve();
    }

    private void serve() throws Exception {
        Map<String, Object> line = new LinkedHashMap<>();
        line.put("port", port());
        Conversation.hold(line, this::answer);
    }

    private void answer(String name, Deque<String> words, Map<String, Object> answer) throws Exception {
        switch (name) {
            case "put":
                put(Integer.parseInt(words.remove()), Integer.parseInt(words.remove()), answer);
                break;
            case "offset":
                offset(words.isEmpty() ? 0 : Long.parseLong(words.remove()), answer);
                break;
            case "slaves":
                slaves(words.isEmpty() ? -1 : Integer.parseInt(words.remove()),
                    words.isEmpty() ? 0 : Long.parseLong(words.remove()), answer);
                break;
            case "get":
                get(words.remove(), Integer.parseInt(words.remove()), Long.parseLong(words.remove()),
                    Long.parseLong(words.remove()), answer);
                break;
            case "flush":
                answer.put("flushed", store.flush());
                break;
            case "wake":
                wake();
                break;
            case "close":
                store.shutdown();
                break;
            default:
                throw new IOException("unknown");
        }
    }

    /** All are put before the first is waited for: a slave confirms many at once. */
    private void put(int count, int size, Map<String, Object> answer) throws Exception {
        if (store.getMessageStoreConfig().getBrokerRole() == BrokerRole.SLAVE) {
            // The store of 5.x would do it: there the broker refuses.
            throw new IOException("a slave");
        }
        long begin = store.getMaxPhyOffset();
        List<CompletableFuture<PutMessageResult>> results = new ArrayList<>();
        for (int n = 0; n < count; n++) {
            MessageExtBrokerInner message = Interop.message(begin, n);
            byte[] body = new byte[size];
            new Random(begin + n).nextBytes(body);
            message.setBody(body);
            results.add(store.asyncPutMessage(message));
        }
        Map<String, Integer> statuses = new TreeMap<>();
        long end = begin;
        for (CompletableFuture<PutMessageResult> result : results) {
            PutMessageResult put = result.get();
            statuses.merge(put.getPutMessageStatus().name(), 1, Integer::sum);
            AppendMessageResult appended = put.getAppendMessageResult();
            if (appended != null) {
                end = Math.max(end, appended.getWroteOffset() + appended.getWroteBytes());
            }
        }
        answer.put("begin", begin);
        answer.put("end", end);
        answer.put("statuses", statuses);
    }

    private void offset(long max, Map<String, Object> answer) throws Exception {
        // Behind by half a message, too: nothing is dispatched of what ends within one.
        Interop.await(() -> store.getMaxPhyOffset() >= max && (max == 0 || store.dispatchBehindBytes() <= 0));
        answer.put("min", store.getMinPhyOffset());
        answer.put("max", store.getMaxPhyOffset());
    }

    private void slaves(int count, long acked, Map<String, Object> answer) throws Exception {
        Interop.await(() -> store.getHaService().getPush2SlaveMaxOffset().get() >= acked);
        Interop.await(() -> count < 0 || count == connections().stream()
            .filter(slave -> number(slave, "slaveRequestOffset") >= 0).count());
        List<Map<String, Object>> slaves = new ArrayList<>();
        for (Object connection : connections()) {
            Map<String, Object> slave = new LinkedHashMap<>();
            slave.put("requested", number(connection, "slaveRequestOffset"));
            slave.put("acked", number(connection, "slaveAckOffset"));
            slaves.add(slave);
        }
        answer.put("connections", store.getHaService().getConnectionCount().get());
        answer.put("acked", store.getHaService().getPush2SlaveMaxOffset().get());
        answer.put("slaves", slaves);
    }

    private void get(String topic, int queueId, long offset, long count, Map<String, Object> answer)
            throws Exception {
        long max = store.getMaxOffsetInQueue(topic, queueId);
        ConsumeQueue queue = (ConsumeQueue) store.getConsumeQueueTable().get(topic).get(queueId);
        List<Map<String, Object>> messages = new ArrayList<>();
        Interop.read(store, topic, queueId, offset, Math.min(max, offset + count),
            (record, n) -> messages.add(Interop.describe(record, Interop.tagsCode(queue, n))));
        answer.put("max", max);
        answer.put("messages", messages);
    }

    /** Also before it waits: then it will not. */
    private void wake() throws IOException {
        if (store.getMessageStoreConfig().getBrokerRole() != BrokerRole.SLAVE) {
            throw new IOException("a master");
        }
        ((ServiceThread) field(store.getHaService(), "haClient")).wakeup();
    }

    private int port() throws IOException {
        Object accepting = field(store.getHaService(), "acceptSocketService");
        ServerSocketChannel socket = (ServerSocketChannel) field(accepting, "serverSocketChannel");
        return ((InetSocketAddress) socket.getLocalAddress()).getPort();
    }

    private List<Object> connections() {
        List<?> connections = (List<?>) field(store.getHaService(), "connectionList");
        synchronized (connections) {
            return new ArrayList<>(connections);
        }
    }

    private static long number(Object object, String name) {
        return (long) field(object, name);
    }

    /** What the one version shows and the other does not. */
    private static Object field(Object object, String name) {
        for (Class<?> type = object.getClass(); type != null; type = type.getSuperclass()) {
            try {
                Field field = type.getDeclaredField(name);
                field.setAccessible(true);
                return field.get(object);
            } catch (NoSuchFieldException above) {
                // Perhaps a class above has it.
            } catch (IllegalAccessException unexpected) {
                throw new IllegalStateException(unexpected);
            }
        }
        throw new IllegalStateException("no field " + name);
    }
}
