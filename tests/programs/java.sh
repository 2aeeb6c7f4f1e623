check version sh -c 'java -version 2>&1 | head -1'
cat > Tls.java <<'END'
import java.io.*;
import java.net.http.*;
import java.net.*;
import java.nio.file.*;
import java.security.KeyStore;
import java.util.stream.*;
import javax.net.ssl.*;
import com.sun.net.httpserver.*;
public class Tls {
    public static void main(String[] a) throws Exception {
        KeyStore store = KeyStore.getInstance(new File("keys"), "secret".toCharArray());
        var keys = KeyManagerFactory.getInstance("SunX509"); keys.init(store, "secret".toCharArray());
        var trust = TrustManagerFactory.getInstance("PKIX"); trust.init(store);
        SSLContext tls = SSLContext.getInstance("TLS"); tls.init(keys.getKeyManagers(), trust.getTrustManagers(), null);
        var server = HttpsServer.create(new InetSocketAddress("localhost", 0), 0);
        server.setHttpsConfigurator(new HttpsConfigurator(tls));
        server.createContext("/", x -> { x.sendResponseHeaders(200, 3); x.getResponseBody().write("tls".getBytes()); x.close(); });
        server.start();
        var client = HttpClient.newBuilder().sslContext(tls).build();
        var uri = URI.create("https://localhost:" + server.getAddress().getPort() + "/");
        var answer = client.send(HttpRequest.newBuilder(uri).build(), HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.body() + " " + answer.sslSession().get().getProtocol());
        server.stop(0);
        System.out.println(IntStream.range(0, 1000000).parallel().filter(i -> i % 3 == 0).count());
        var process = new ProcessBuilder("sh", "-c", "echo child; exit 3").redirectErrorStream(true).start();
        System.out.println(new String(process.getInputStream().readAllBytes()).trim() + " " + process.waitFor());
        Files.writeString(Path.of("written"), "x"); System.out.println(Files.size(Path.of("written")));
        System.exit(0);
    }
}
END
cat > Heap.java <<'END'
public class Heap {
    public static void main(String[] a) {
        System.out.println(Runtime.getRuntime().maxMemory() <= (1L << 30) ? "below a gigabyte" : "above a gigabyte");
    }
}
END
check keys sh -c 'keytool -genkeypair -alias k -keyalg EC -storepass secret -keystore keys -dname CN=localhost -ext san=dns:localhost 2>&1 | head -1; keytool -list -storepass secret -keystore keys | grep -c PrivateKeyEntry'
check javac javac -Xlint:all Tls.java Heap.java
check 'TLS, streams, processes' java Tls
# What the sandbox has been given, as programs can read it.
limit() {
    [ "$LIMITED" ] || { echo 2147483648; return; }
    cd /sys/fs/cgroup && { cat memory/memory.limit_in_bytes 2> /dev/null || cat memory.max; }
}
check 'the limit' limit
cd /tmp/work
# Where there is no limit, the JVM is told one.
told=-XX:MaxRAM=2147483648
[ -z "$LIMITED" ] || told=
check 'a heap by the limit' sh -c "java $told -XX:+PrintFlagsFinal -version 2> /dev/null | grep -o ' MaxHeapSize *= [0-9]*'"
check jar sh -c 'jar --create --file app.jar --main-class Heap Heap.class && java -Xmx64m -jar app.jar'
check jshell sh -c 'printf "System.out.println(6 * 7)\n/exit\n" > lines && jshell -s lines 2> /dev/null'
check jcmd sh -c 'java -Xmx64m -cp . Heap & jcmd -l | grep -c jcmd; wait'
check 'a collector of each kind' sh -c 'for gc in Serial Parallel G1 Z Shenandoah; do java -Xmx128m -XX:+Use${gc}GC Heap || echo "not $gc"; done'
check 'large pages' sh -c 'java -XX:+UseLargePages -Xmx64m Heap 2>&1 | tail -1'
