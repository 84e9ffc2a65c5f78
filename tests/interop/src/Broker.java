import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelInboundHandlerAdapter;
import io.netty.channel.embedded.EmbeddedChannel;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import org.apache.rocketmq.broker.BrokerController;
import org.apache.rocketmq.broker.processor.EndTransactionProcessor;
import org.apache.rocketmq.broker.transaction.AbstractTransactionalMessageCheckListener;
import org.apache.rocketmq.common.BrokerConfig;
import org.apache.rocketmq.common.MixAll;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.message.MessageAccessor;
import org.apache.rocketmq.common.message.MessageDecoder;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageExtBrokerInner;
import org.apache.rocketmq.common.sysflag.MessageSysFlag;
import org.apache.rocketmq.remoting.netty.NettyClientConfig;
import org.apache.rocketmq.remoting.netty.NettyRequestProcessor;
import org.apache.rocketmq.remoting.netty.NettyServerConfig;
import org.apache.rocketmq.remoting.protocol.RemotingCommand;
import org.apache.rocketmq.remoting.protocol.RequestCode;
import org.apache.rocketmq.remoting.protocol.ResponseCode;
import org.apache.rocketmq.remoting.protocol.header.ConsumerSendMsgBackRequestHeader;
import org.apache.rocketmq.remoting.protocol.header.EndTransactionRequestHeader;
import org.apache.rocketmq.store.DefaultMessageStore;
import org.apache.rocketmq.store.GetMessageResult;
import org.apache.rocketmq.store.GetMessageStatus;
import org.apache.rocketmq.store.PutMessageResult;
import org.apache.rocketmq.store.PutMessageStatus;
import org.apache.rocketmq.store.config.MessageStoreConfig;

/**
 * A whole broker of RocketMQ 5, to which nobody is connected: what clients would ask of it over the network
 * it is asked here, where it would have been received. Besides what Master does:
 *
 * <pre>
 * topics                               {"topics": {TOPIC: [queues to read, queues to write]}}
 * group GROUP TOPIC QUEUE              where the group is, -1 if nobody knows; {"offset"}
 * consume GROUP TOPIC QUEUE            what the group has not consumed; it has then; {"messages"}
 * back GROUP OFFSET LEVEL              sends back what lies there in the log, for a retry; {}
 * prepare GROUP TOPIC QUEUE BODY [NAME=VALUE]...  as a producer's half message; {"queueOffset"}
 * check                                has the half messages checked that are open
 *                                        {"asked": [those about which producers are asked],
 *                                         "discarded": [those about which they are not any more]}
 * commit|rollback OFFSET               what a producer answers about the half message there; {}
 * </pre>
 */
final class Broker extends Master {
    /** Nothing happens by itself. */
    private static final long NEVER = 24 * 3600 * 1000;
    private static final String HALF_TOPIC = "RMQ_SYS_TRANS_HALF_TOPIC";

    private final BrokerController controller;

    private Broker(BrokerController controller) {
        super((DefaultMessageStore) controller.getMessageStore());
        this.controller = controller;
    }

    static Broker start(String dir, Properties options) throws Exception {
        BrokerConfig config = new BrokerConfig();
        config.setBrokerIP1("127.0.0.1");
        config.setTransactionCheckInterval(NEVER);
        MixAll.properties2Object(options, config);
        NettyServerConfig server = new NettyServerConfig();
        server.setListenPort(0);
        MessageStoreConfig store = Interop.config(dir, options);
        store.setMappedFileSizeTimerLog(100 << 10);
        BrokerController controller =
            new BrokerController(config, server, new NettyClientConfig(), store);
        if (!controller.initialize()) {
            throw new IOException("RocketMQ does not load " + dir);
        }
        controller.start();
        Broker broker = new Broker(controller);
        Interop.await(() -> broker.store.dispatchBehindBytes() <= 0);
        return broker;
    }

    @Override
    boolean isWhole() {
        return true;
    }

    @Override
    void answer(String command, Deque<String> words, Map<String, Object> answer) throws Exception {
        switch (command) {
            case "topics":
                answer.put("topics", topics());
                break;
            case "group":
                answer.put("offset", controller.getConsumerOffsetManager().queryOffset(
                    words.remove(), words.remove(), Integer.parseInt(words.remove())));
                break;
            case "consume":
                answer.put("messages",
                    consume(words.remove(), words.remove(), Integer.parseInt(words.remove())));
                break;
            case "back":
                back(words.remove(), Long.parseLong(words.remove()), Integer.parseInt(words.remove()));
                break;
            case "prepare":
                prepare(words.remove(), words.remove(), Integer.parseInt(words.remove()), words, answer);
                break;
            case "check":
                check(answer);
                break;
            case "commit":
                end(MessageSysFlag.TRANSACTION_COMMIT_TYPE, Long.parseLong(words.remove()));
                break;
            case "rollback":
                end(MessageSysFlag.TRANSACTION_ROLLBACK_TYPE, Long.parseLong(words.remove()));
                break;
            default:
                super.answer(command, words, answer);
        }
    }

    private Map<String, int[]> topics() {
        Map<String, int[]> topics = new TreeMap<>();
        for (TopicConfig topic : controller.getTopicConfigManager().getTopicConfigTable().values()) {
            topics.put(topic.getTopicName(),
                new int[] {topic.getReadQueueNums(), topic.getWriteQueueNums()});
        }
        return topics;
    }

    private List<Object> consume(String group, String topic, int queueId) throws Exception {
        List<Object> messages = new ArrayList<>();
        long next = controller.getConsumerOffsetManager().queryOffset(group, topic, queueId);
        next = Math.max(next, store.getMinOffsetInQueue(topic, queueId));
        long end = store.getMaxOffsetInQueue(topic, queueId);
        Interop.read(store, topic, queueId, next, end,
            (record, offset) -> messages.add(Interop.describe(record, null)));
        controller.getConsumerOffsetManager().commitOffset("interop", group, topic, queueId, end);
        return messages;
    }

    private void back(String group, long offset, int level) throws Exception {
        ConsumerSendMsgBackRequestHeader header = new ConsumerSendMsgBackRequestHeader();
        header.setGroup(group);
        header.setOffset(offset);
        header.setDelayLevel(level);
        ask(controller.getSendMessageProcessor(),
            RemotingCommand.createRequestCommand(RequestCode.CONSUMER_SEND_MSG_BACK, header));
    }

    private void prepare(String group, String topic, int queueId, Deque<String> words,
            Map<String, Object> answer) throws Exception {
        MessageExtBrokerInner message = message(topic, queueId, words);
        MessageAccessor.putProperty(message, "TRAN_MSG", "true");
        MessageAccessor.putProperty(message, "PGROUP", group);
        message.setPropertiesString(MessageDecoder.messageProperties2String(message.getProperties()));
        PutMessageResult put = controller.getTransactionalMessageService().prepareMessage(message);
        if (put.getPutMessageStatus() != PutMessageStatus.PUT_OK) {
            throw new IOException("not stored: " + put.getPutMessageStatus());
        }
        answer.put("queueOffset", put.getAppendMessageResult().getLogicsOffset());
    }

    private void check(Map<String, Object> answer) {
        List<Object> asked = new ArrayList<>();
        List<Object> discarded = new ArrayList<>();
        AbstractTransactionalMessageCheckListener listener =
            new AbstractTransactionalMessageCheckListener() {
                @Override
                public void resolveHalfMsg(MessageExt message) {
                    asked.add(half(message));
                }

                @Override
                public void resolveDiscardMsg(MessageExt message) {
                    discarded.add(half(message));
                }
            };
        int max = controller.getBrokerConfig().getTransactionCheckMax();
        controller.getTransactionalMessageService().check(1, max, listener);
        answer.put("asked", asked);
        answer.put("discarded", discarded);
    }

    private static Map<String, Object> half(MessageExt message) {
        Map<String, Object> half = new LinkedHashMap<>();
        half.put("body", new String(message.getBody()));
        half.put("queueOffset", message.getQueueOffset());
        half.put("properties", message.getProperties());
        return half;
    }

    private void end(int how, long offset) throws Exception {
        GetMessageResult found = store.getMessage("interop", HALF_TOPIC, 0, offset, 1, null);
        if (found.getStatus() != GetMessageStatus.FOUND) {
            throw new IOException("no half message: " + found.getStatus());
        }
        ByteBuffer record = found.getMessageBufferList().get(0);
        MessageExt half = Interop.decode(record);
        found.release();
        EndTransactionRequestHeader header = new EndTransactionRequestHeader();
        header.setTopic(half.getProperty("REAL_TOPIC"));
        header.setProducerGroup(half.getProperty("PGROUP"));
        header.setTranStateTableOffset(offset);
        header.setCommitLogOffset(half.getCommitLogOffset());
        header.setCommitOrRollback(how);
        header.setFromTransactionCheck(true);
        header.setMsgId(half.getProperty("UNIQ_KEY"));
        ask(new EndTransactionProcessor(controller),
            RemotingCommand.createRequestCommand(RequestCode.END_TRANSACTION, header));
    }

    /** As if it had come over the network. */
    private static void ask(NettyRequestProcessor processor, RemotingCommand request) throws Exception {
        request.makeCustomHeaderToNet();
        if (request.getExtFields() == null) {
            request.setExtFields(new HashMap<>());
        }
        ChannelHandlerContext context =
            new EmbeddedChannel(new ChannelInboundHandlerAdapter()).pipeline().firstContext();
        RemotingCommand response = processor.processRequest(context, request);
        if (response == null || response.getCode() != ResponseCode.SUCCESS) {
            throw new IOException("refused: " + response);
        }
    }

    @Override
    HashMap<String, String> stats() throws Exception {
        HashMap<String, String> stats = new HashMap<>();
        controller.getScheduleMessageService().buildRunningStats(stats);
        return stats;
    }

    @Override
    void close() {
        controller.shutdown();
    }
}
