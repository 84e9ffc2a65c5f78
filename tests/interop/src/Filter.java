import com.alibaba.fastjson.JSON;
import com.alibaba.fastjson.JSONObject;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.apache.rocketmq.filter.FilterFactory;
import org.apache.rocketmq.filter.expression.EvaluationContext;
import org.apache.rocketmq.filter.expression.Expression;
import org.apache.rocketmq.filter.expression.MQFilterException;

/**
 * Apache RocketMQ's SQL92 filter. The first line of standard input is a JSON list of messages, objects of
 * properties; each other one an object with an expression, which is printed again with the answers: a letter
 * for each message, or none if it does not parse. T and F are true and false, U is NULL, and ! an exception.
 */
public final class Filter {
    public static void main(String[] args) throws Exception {
        PrintStream out = new PrintStream(new FileOutputStream(FileDescriptor.out), false,
            StandardCharsets.UTF_8);
        // Loggers find another place for what they say.
        System.setOut(new PrintStream(new FileOutputStream(FileDescriptor.err), true));
        BufferedReader in = new BufferedReader(
            new InputStreamReader(System.in, StandardCharsets.UTF_8));
        List<JSONObject> messages = new ArrayList<>();
        for (Object message : JSON.parseArray(in.readLine())) {
            messages.add((JSONObject) message);
        }
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String text = JSON.parseObject(line).getString("expression");
            JSONObject answered = new JSONObject(true);
            answered.put("expression", text);
            answered.put("answers", answers(text, messages));
            out.print(answered.toJSONString() + "\n");
        }
        out.flush();
        System.exit(0);
    }

    private static String answers(String text, List<JSONObject> messages) {
        Expression expression;
        try {
            expression = FilterFactory.INSTANCE.get("SQL92").compile(text);
        } catch (MQFilterException refused) {
            return null;
        }
        StringBuilder answers = new StringBuilder();
        for (JSONObject message : messages) {
            try {
                Object answer = expression.evaluate(new Message(message));
                answers.append(answer == null ? 'U' : answer == Boolean.TRUE ? 'T' : 'F');
            } catch (Exception failed) {
                answers.append('!');
            }
        }
        return answers.toString();
    }

    private record Message(JSONObject properties) implements EvaluationContext {
        @Override
        public Object get(String name) {
            return properties.getString(name);
        }

        @Override
        public Map<String, Object> keyValues() {
            return properties;
        }
    }
}
