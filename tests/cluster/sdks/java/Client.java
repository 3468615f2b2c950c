import com.azure.core.credential.TokenCredential;
import com.azure.core.credential.TokenRequestContext;
import com.azure.core.http.policy.FixedDelay;
import com.azure.core.http.policy.RetryPolicy;
import com.azure.identity.DefaultAzureCredentialBuilder;
import com.azure.identity.ManagedIdentityCredentialBuilder;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.time.Duration;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/** A pod's program in Java, with azure-identity: see ../python_client.py for arguments and output. */
public final class Client {
    private static final String SCOPE = "https://management.azure.com/.default";
    private static final ObjectMapper JSON = new ObjectMapper();

    public static void main(String[] args) throws Exception {
        Map<String, Object> answer = new LinkedHashMap<>();
        long began = System.nanoTime();
        try {
            String selector = args.length > 1 ? args[1] : "";
            TokenCredential credential = credential(args[0], selector, args.length > 2 ? args[2] : "");
            String token = credential.getTokenSync(new TokenRequestContext().addScopes(SCOPE)).getToken();
            answer.put("claims", JSON.readTree(Base64.getUrlDecoder().decode(token.split("\\.")[1])));
        } catch (RuntimeException error) {
            answer.put("error", texts(error));
        }
        answer.put("seconds", (System.nanoTime() - began) / 1e9);
        System.out.println(JSON.writeValueAsString(answer));
        System.exit(0); // the library's threads would keep the program alive
    }

    /** What a printed stack trace shows: the library's own text is that of the cause. */
    private static String texts(Throwable error) {
        return Stream.iterate(error, Objects::nonNull, Throwable::getCause)
                .map(Throwable::toString)
                .collect(Collectors.joining("\nCaused by: "));
    }

    private static TokenCredential credential(String name, String selector, String value) {
        if (name.equals("default")) {
            DefaultAzureCredentialBuilder builder = new DefaultAzureCredentialBuilder();
            switch (selector) {
                case "client-id" -> builder.managedIdentityClientId(value);
                case "resource-id" -> builder.managedIdentityResourceId(value);
                default -> { }
            }
            return builder.build();
        }
        ManagedIdentityCredentialBuilder builder = new ManagedIdentityCredentialBuilder();
        if (name.equals("once")) {
            builder.retryPolicy(new RetryPolicy(new FixedDelay(0, Duration.ofMillis(1))));
        }
        switch (selector) {
            case "client-id" -> builder.clientId(value);
            case "resource-id" -> builder.resourceId(value);
            case "object-id" -> builder.objectId(value);
            default -> { }
        }
        return builder.build();
    }
}
