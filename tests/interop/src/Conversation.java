import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.Arrays;
import java.util.Deque;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * Standard input says what to do, a command on each line, which is answered with a line of JSON: with
 * {"error"} where it cannot be done. Ends with the command `close`; when standard input ends before, the
 * process halts as if killed.
 */
final class Conversation {
    interface Answerer {
        void answer(String command, Deque<String> words, Map<String, Object> answer) throws Exception;
    }

    private Conversation() { }

    /** Says `first` without being asked. */
    static void hold(Map<String, Object> first, Answerer answerer) throws Exception {
        Interop.print(first);
        BufferedReader lines =
            new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            Deque<String> words = new ArrayDeque<>(Arrays.asList(line.split(" ")));
            String command = words.remove();
            Map<String, Object> answer = new LinkedHashMap<>();
            try {
                answerer.answer(command, words, answer);
                if (!words.isEmpty()) {
                    throw new IOException("too many words");
                }
            } catch (Exception failure) {
                failure.printStackTrace();
                answer = new LinkedHashMap<>();
                answer.put("error", line + ": " + failure);
            }
            Interop.print(answer);
            if (command.equals("close")) {
                return;
            }
        }
        Runtime.getRuntime().halt(137);
    }
}
