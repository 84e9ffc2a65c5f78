import java.io.IOException;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
// MessageExtBrokerInner lies in the one or the other, as the version has it.
import org.apache.rocketmq.common.message.*;
import org.apache.rocketmq.store.*;

/**
 * A store as a master has it, which does what standard input says; see Conversation. The one of 4.9 delivers
 * what is delayed, the rest of its broker cannot be had. Of 5.x there is a whole one: Broker.
 *
 * <pre>
 * (at first)                           {"broker": whether it is a whole one}
 * list                                 {"messages": [as Interop prints them]}
 * put TOPIC QUEUE BODY [NAME=VALUE]... as a producer's message; {"queueOffset", "physicalOffset"}
 * await TOPIC QUEUE END                once the queue ends there, or behind it; {"end"}
 * delays                               {"levels": {LEVEL: [the next one to be delivered, the end]}}
 * close                                {}
 * </pre>
 */
class Master {
    final DefaultMessageStore store;

    Master(DefaultMessageStore store) {
        this.store = store;
    }

    static Master of(String dir, Properties options) throws Exception {
        Class<?> broker;
        try {
            broker = Class.forName("Broker");
        } catch (ClassNotFoundException of49) {
            return new Master(Interop.open(dir, options));
        }
        return (Master) broker.getDeclaredMethod("start", String.class, Properties.class)
            .invoke(null, dir, options);
    }

    final void serve() throws Exception {
        Map<String, Object> line = new LinkedHashMap<>();
        line.put("broker", isWhole());
        Conversation.hold(line, this::answer);
    }

    boolean isWhole() {
        return false;
    }

    void answer(String command, Deque<String> words, Map<String, Object> answer) throws Exception {
        switch (command) {
            case "list":
                answer.put("messages", list());
                break;
            case "put":
                put(words.remove(), Integer.parseInt(words.remove()), words, answer);
                break;
            case "await": {
                String topic = words.remove();
                int queueId = Integer.parseInt(words.remove());
                long end = Long.parseLong(words.remove());
                Interop.await(() -> store.getMaxOffsetInQueue(topic, queueId) >= end);
                answer.put("end", store.getMaxOffsetInQueue(topic, queueId));
                break;
            }
            case "delays":
                answer.put("levels", delays());
                break;
            case "close":
                close();
                break;
            default:
                throw new IOException("unknown");
        }
    }

    private List<Object> list() throws Exception {
        List<Object> messages = new ArrayList<>();
        Interop.everything(store, (record, tagsCode) -> messages.add(Interop.describe(record, tagsCode)));
        return messages;
    }

    private void put(String topic, int queueId, Deque<String> words, Map<String, Object> answer)
            throws Exception {
        PutMessageResult put = store.putMessage(message(topic, queueId, words));
        if (put.getPutMessageStatus() != PutMessageStatus.PUT_OK) {
            throw new IOException("not stored: " + put.getPutMessageStatus());
        }
        answer.put("queueOffset", put.getAppendMessageResult().getLogicsOffset());
        answer.put("physicalOffset", put.getAppendMessageResult().getWroteOffset());
    }

    /** BODY [NAME=VALUE]... */
    static MessageExtBrokerInner message(String topic, int queueId, Deque<String> words)
            throws Exception {
        MessageExtBrokerInner message = new MessageExtBrokerInner();
        message.setTopic(topic);
        message.setQueueId(queueId);
        message.setBody(words.remove().getBytes());
        // As a message that came over the network has them.
        MessageAccessor.setProperties(message, new HashMap<>());
        while (!words.isEmpty()) {
            String[] property = words.remove().split("=", 2);
            MessageAccessor.putProperty(message, property[0], property[1]);
        }
        message.setBornTimestamp(System.currentTimeMillis());
        message.setBornHost(new InetSocketAddress("127.0.0.1", 1));
        message.setStoreHost(new InetSocketAddress("127.0.0.1", 2));
        message.setPropertiesString(MessageDecoder.messageProperties2String(message.getProperties()));
        return message;
    }

    private Map<String, long[]> delays() throws Exception {
        String prefix = "scheduleMessageOffset_";
        Map<String, long[]> levels = new TreeMap<>();
        for (Map.Entry<String, String> stat : stats().entrySet()) {
            if (stat.getKey().startsWith(prefix)) {
                String[] offsets = stat.getValue().split(",");
                levels.put(stat.getKey().substring(prefix.length()),
                    new long[] {Long.parseLong(offsets[0]), Long.parseLong(offsets[1])});
            }
        }
        return levels;
    }

    HashMap<String, String> stats() throws Exception {
        return store.getRuntimeInfo();
    }

    void close() throws Exception {
        store.shutdown();
    }
}
