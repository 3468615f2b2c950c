// A pod's program in JavaScript, with @azure/identity: see ../python_client.py for arguments and output.
import { DefaultAzureCredential, ManagedIdentityCredential } from "@azure/identity";

const SCOPE = "https://management.azure.com/.default";

function credential(name, selector, value) {
  if (name === "default") {
    const options = { "client-id": "managedIdentityClientId", "resource-id": "managedIdentityResourceId" };
    return new DefaultAzureCredential(selector ? { [options[selector]]: value } : {});
  }
  const options = { "client-id": "clientId", "resource-id": "resourceId", "object-id": "objectId" };
  return new ManagedIdentityCredential({
    ...(selector && { [options[selector]]: value }),
    ...(name === "once" && { retryOptions: { maxRetries: 0 } }),
  });
}

function claims(token) {
  return JSON.parse(Buffer.from(token.split(".")[1], "base64url"));
}

const began = performance.now();
const answer = {};
try {
  const { token } = await credential(...process.argv.slice(2)).getToken(SCOPE);
  answer.claims = claims(token);
} catch (error) {
  answer.error = error.message;
}
answer.seconds = (performance.now() - began) / 1000;
console.log(JSON.stringify(answer));
