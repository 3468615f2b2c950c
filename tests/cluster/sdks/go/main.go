// A pod's program in Go, with azidentity: see ../python_client.py for arguments and output.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

const scope = "https://management.azure.com/.default"

type answer struct {
	Claims  json.RawMessage `json:"claims,omitempty"`
	Error   string          `json:"error,omitempty"`
	Seconds float64         `json:"seconds"`
}

func main() {
	began := time.Now()
	claims, err := ask(os.Args[1], os.Args[2:])
	given := answer{Claims: claims, Seconds: time.Since(began).Seconds()}
	if err != nil {
		given.Error = err.Error()
	}
	line, err := json.Marshal(given)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

func ask(name string, selector []string) ([]byte, error) {
	credential, err := credentialOf(name, selector)
	if err != nil {
		return nil, err
	}
	token, err := credential.GetToken(context.Background(), policy.TokenRequestOptions{Scopes: []string{scope}})
	if err != nil {
		return nil, err
	}
	return base64.RawURLEncoding.DecodeString(strings.Split(token.Token, ".")[1])
}

// The default credential takes an identity's client ID from the environment only.
func credentialOf(name string, selector []string) (azcore.TokenCredential, error) {
	if name == "default" {
		if len(selector) > 0 {
			os.Setenv("AZURE_CLIENT_ID", selector[1])
		}
		return azidentity.NewDefaultAzureCredential(nil)
	}
	options := azidentity.ManagedIdentityCredentialOptions{}
	if name == "once" {
		options.Retry.MaxRetries = -1
	}
	if len(selector) > 0 {
		switch value := selector[1]; selector[0] {
		case "client-id":
			options.ID = azidentity.ClientID(value)
		case "resource-id":
			options.ID = azidentity.ResourceID(value)
		case "object-id":
			options.ID = azidentity.ObjectID(value)
		}
	}
	return azidentity.NewManagedIdentityCredential(&options)
}
