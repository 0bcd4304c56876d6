{{/*
The containers that `hedgerow inject` makes, field by field; e2e/apiserver/test_sidecar_chart.py compares the two.
How a chart includes them, and what goes into its own containers, is in the README.
*/}}

{{/* The webhook leaves these pods as they are. */}}
{{- define "hedgerow-sidecar.labels" -}}
hedgerow.dev/injection: disabled
{{- end -}}

{{/* What the controller reads of the pod: which hosts outside its sidecar asks to inspect. */}}
{{- define "hedgerow-sidecar.annotations" -}}
{{- $values := index .Values "hedgerow-sidecar" -}}
{{- with include "hedgerow-sidecar.inspected" $values -}}
hedgerow.dev/inspect-egress: {{ . | fromJsonArray | join "," | quote }}
{{- with $values.egressRoots }}
hedgerow.dev/egress-roots: {{ . | quote }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Of each container of the application, where hosts outside are inspected: what it has to trust. */}}
{{- define "hedgerow-sidecar.env" -}}
{{- $values := index .Values "hedgerow-sidecar" -}}
{{- if include "hedgerow-sidecar.inspected" $values -}}
{{- range $name, $file := include "hedgerow-sidecar.variables" . | fromYaml -}}
{{- if not (has $name $values.ownVariables) }}
- {name: {{ $name }}, value: /var/run/secrets/hedgerow/roots/{{ $file }}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "hedgerow-sidecar.volumeMounts" -}}
{{- if include "hedgerow-sidecar.inspected" (index .Values "hedgerow-sidecar") -}}
- {name: hedgerow-roots, mountPath: /var/run/secrets/hedgerow/roots, readOnly: true}
{{- end -}}
{{- end -}}

{{/* Where libraries look. */}}
{{- define "hedgerow-sidecar.variables" -}}
AWS_CA_BUNDLE: ca-bundle.pem
CURL_CA_BUNDLE: ca-bundle.pem
GIT_SSL_CAINFO: ca-bundle.pem
GRPC_DEFAULT_SSL_ROOTS_FILE_PATH: ca-bundle.pem
NODE_EXTRA_CA_CERTS: inspection-root.pem
REQUESTS_CA_BUNDLE: ca-bundle.pem
SSL_CERT_FILE: ca-bundle.pem
{{- end -}}

{{- define "hedgerow-sidecar.initContainers" -}}
{{- $values := index .Values "hedgerow-sidecar" -}}
- name: hedgerow-capture
  {{- include "hedgerow-sidecar.base" (dict "root" . "values" $values "resources" "captureResources" "whole" false) | nindent 2 }}
  command: [python, -m, sidecar, capture, --config-env, HEDGEROW_SIDECAR]
  securityContext:
    {{- include "hedgerow-sidecar.security" 0 | nindent 4 }}
    runAsNonRoot: false
    capabilities: {add: [NET_ADMIN], drop: [ALL]}
  volumeMounts: [{{ include "hedgerow-sidecar.noApiToken" . }}]
{{- if $values.validation }}
- name: hedgerow-validation
  {{- include "hedgerow-sidecar.base" (dict "root" . "values" $values "resources" "captureResources" "whole" false) | nindent 2 }}
  command: [python, -m, sidecar, capture, --check, --config-env, HEDGEROW_SIDECAR]
  securityContext:
    {{- include "hedgerow-sidecar.security" 65534 | nindent 4 }}
    runAsNonRoot: true
    capabilities: {drop: [ALL]}
  volumeMounts: [{{ include "hedgerow-sidecar.noApiToken" . }}]
{{- end }}
- name: hedgerow-sidecar
  {{- include "hedgerow-sidecar.base" (dict "root" . "values" $values "resources" "resources" "whole" true) | nindent 2 }}
  command: [python, -m, sidecar, --config-env, HEDGEROW_SIDECAR]
  restartPolicy: Always
  ports: [{name: hedgerow-stats, containerPort: 15020, protocol: TCP}]
  readinessProbe: {{- include "hedgerow-sidecar.ready" (dict "period" 5 "failures" 3) | nindent 4 }}
  startupProbe: {{- include "hedgerow-sidecar.ready" (dict "period" 1 "failures" $values.startSeconds) | nindent 4 }}
  securityContext:
    {{- include "hedgerow-sidecar.security" 1337 | nindent 4 }}
    runAsNonRoot: true
    capabilities: {drop: [ALL]}
  volumeMounts:
    - {name: hedgerow-token, mountPath: /var/run/secrets/hedgerow/token, readOnly: true}
    - {name: hedgerow-trust, mountPath: /var/run/secrets/hedgerow/trust, readOnly: true}
    - {name: hedgerow-state, mountPath: /var/lib/hedgerow}
    {{- if include "hedgerow-sidecar.inspected" $values }}
    - {name: hedgerow-roots, mountPath: /var/run/secrets/hedgerow/roots}
    {{- if $values.egressRoots }}
    - {name: hedgerow-egress-roots, mountPath: /var/run/secrets/hedgerow/egress-roots, readOnly: true}
    {{- end }}
    {{- end }}
    - {{ include "hedgerow-sidecar.noApiToken" . }}
{{- end -}}

{{- define "hedgerow-sidecar.volumes" -}}
{{- $values := index .Values "hedgerow-sidecar" -}}
- name: hedgerow-token
  projected:
    defaultMode: 0644
    sources:
      - serviceAccountToken: {audience: {{ include "hedgerow-sidecar.tokenAudience" $values | quote }}, expirationSeconds: 600, path: token}
- name: hedgerow-trust
  configMap: {name: hedgerow-trust, defaultMode: 0644}
- name: hedgerow-state
  emptyDir: {sizeLimit: 64Mi}
{{- if include "hedgerow-sidecar.inspected" $values }}
- name: hedgerow-roots
  emptyDir: {sizeLimit: 16Mi}
{{- with $values.egressRoots }}
{{- $found := splitn "/" 2 . }}
- name: hedgerow-egress-roots
  configMap:
    name: {{ $found._0 | quote }}
    defaultMode: 0644
    items: [{key: {{ $found._1 | quote }}, path: roots.pem}]
{{- end }}
{{- end }}
{{- end -}}

{{/*
The inspected hosts as JSON, HOST:PORT each once, by host and then by number; nothing where there are none.
What the injector refuses is refused here.
*/}}
{{- define "hedgerow-sidecar.inspected" -}}
{{- $found := dict -}}
{{- range .inspectEgress -}}
{{- $parts := splitn ":" 2 . -}}
{{- $port := $parts._1 | default "443" -}}
{{- if gt (len $parts._0) 253 -}}
{{- fail (printf "hedgerow-sidecar.inspectEgress: %s is longer than the 253 characters of a host name" $parts._0) -}}
{{- end -}}
{{- $_ := set $found (printf "%s %05d" $parts._0 (int $port)) (printf "%s:%s" $parts._0 $port) -}}
{{- end -}}
{{- $hosts := list -}}
{{- range keys $found | sortAlpha -}}
{{- $hosts = append $hosts (get $found .) -}}
{{- end -}}
{{- if $hosts -}}
{{- $dns := get (.settings | default dict) "dns" | default dict -}}
{{- if eq (get $dns "proxy" | toString) "false" -}}
{{- fail "hedgerow-sidecar.inspectEgress: hosts are known by answers of DNS, which this sidecar does not see; remove settings.dns.proxy, or inspectEgress" -}}
{{- end -}}
{{- if gt (len (join "," $hosts)) 4096 -}}
{{- fail "hedgerow-sidecar.inspectEgress: the names have more than 4096 characters together; name fewer hosts" -}}
{{- end -}}
{{- toRawJson $hosts -}}
{{- else if .egressRoots -}}
{{- fail "hedgerow-sidecar.egressRoots: there is no host whose certificate it is for; set inspectEgress too, or remove it" -}}
{{- else if .ownVariables -}}
{{- fail "hedgerow-sidecar.ownVariables: no variable is set where no host outside is inspected; set inspectEgress too, or remove it" -}}
{{- end -}}
{{- end -}}

{{/* What all three share. */}}
{{- define "hedgerow-sidecar.base" -}}
image: {{ include "hedgerow-sidecar.image" . | quote }}
imagePullPolicy: {{ .values.image.pullPolicy }}
env:
  - {name: POD_NAME, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.name}}}
  - {name: POD_NAMESPACE, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}}
  - {name: POD_IPS, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: status.podIPs}}}
  - name: HEDGEROW_SIDECAR
    value: {{ include "hedgerow-sidecar.settings" . | quote }}
resources: {{- include "hedgerow-sidecar.resources" . | nindent 2 }}
terminationMessagePath: /dev/termination-log
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{/* As the injector writes them: plain numbers as text, without what is empty, and no request above its limit. */}}
{{- define "hedgerow-sidecar.resources" -}}
{{- $where := printf "hedgerow-sidecar.%s" .resources -}}
{{- $made := dict -}}
{{- range $kind, $amounts := get .values .resources -}}
{{- $written := dict -}}
{{- range $name, $amount := $amounts | default dict -}}
{{- $text := kindIs "string" $amount | ternary $amount (toJson $amount) -}}
{{- if not (regexMatch "^[0-9]{1,15}(\\.[0-9]{1,9})?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$" $text) -}}
{{- fail (printf "%s.%s.%s: %s is no quantity; write one such as 100m, 1, 128Mi or 1Gi" $where $kind $name $text) -}}
{{- end -}}
{{- $_ := set $written $name $text -}}
{{- end -}}
{{- if $written -}}
{{- $_ := set $made $kind $written -}}
{{- end -}}
{{- end -}}
{{- $limits := get $made "limits" | default dict -}}
{{- range $name, $request := get $made "requests" | default dict -}}
{{- $limit := get $limits $name | default $request -}}
{{- if gt (include "hedgerow-sidecar.amount" $request | float64) (include "hedgerow-sidecar.amount" $limit | float64) -}}
{{- fail (printf "%s.requests.%s: %s is more than the limit, %s; raise the limit" $where $name $request $limit) -}}
{{- end -}}
{{- end -}}
{{- toYaml $made -}}
{{- end -}}

{{/* The number that a quantity stands for. */}}
{{- define "hedgerow-sidecar.amount" -}}
{{- $units := dict "m" "1e-3" "k" "1e3" "M" "1e6" "G" "1e9" "T" "1e12" "Ki" "1024" "Mi" "1048576" "Gi" "1073741824" "Ti" "1099511627776" -}}
{{- mulf (regexFind "^[0-9.]+" .) (get $units (regexFind "[A-Za-z]*$" .) | default "1") -}}
{{- end -}}

{{/* An upgrade with --reuse-values knows no value that is new. */}}
{{- define "hedgerow-sidecar.tokenAudience" -}}
{{- $audience := .tokenAudience | default "hedgerow-controller" -}}
{{- if regexMatch "^(?i)(https?://)?kubernetes(\\.default(\\.svc(\\..*)?)?)?(:[0-9]*)?/?$" $audience -}}
{{- fail (printf "hedgerow-sidecar.tokenAudience: %q is the API server, and every pod has a token for it; write the controller's tokenAudience" $audience) -}}
{{- end -}}
{{- $audience -}}
{{- end -}}

{{- define "hedgerow-sidecar.image" -}}
{{- $image := .values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default "0.1.0" }}
{{- end -}}
{{- end -}}

{{/* sidecar.yaml as JSON: what the kubelet fills in stands as $(NAME), and a $ of anybody else's is doubled. */}}
{{- define "hedgerow-sidecar.settings" -}}
{{- $given := toRawJson (.values.settings | default dict) | replace "$" "$$" | fromJson -}}
{{- with include "hedgerow-sidecar.inspected" .values -}}
{{- $egress := dict "directory" "/var/run/secrets/hedgerow/roots" "hosts" (fromJsonArray .) -}}
{{- if $.values.egressRoots -}}
{{- $_ := set $egress "roots" "/var/run/secrets/hedgerow/egress-roots/roots.pem" -}}
{{- end -}}
{{- $given = mergeOverwrite $given (dict "inspect" (dict "egress" $egress)) -}}
{{- end -}}
{{- if not .whole -}}
{{- $given = omit $given "probes" "merge_metrics" "metrics" "inspect" "http" "limits" "directory" "report_flows" -}}
{{- end -}}
{{- $made := dict
  "addresses" "$(POD_IPS)"
  "capture" "redirect"
  "controller" (printf "%s:15012" .values.controllerHost)
  "instance" "$(POD_NAME)"
  "issuer" (printf "%s:15013" .values.controllerHost)
  "service_account_token_file" "/var/run/secrets/hedgerow/token/token"
  "state_dir" "/var/lib/hedgerow/state"
  "stats_listen" "0.0.0.0:15020"
  "trust_bundle" "/var/run/secrets/hedgerow/trust/trust-bundle.pem"
  "trust_domain" .values.trustDomain
-}}
{{- $document := toRawJson (merge $made $given) -}}
{{- if gt (len $document) 120000 -}}
{{- fail (printf "hedgerow-sidecar.settings: %d bytes as JSON; keep to 120000, which is what one environment variable may have" (len $document)) -}}
{{- end -}}
{{- $document -}}
{{- end -}}

{{- define "hedgerow-sidecar.security" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "hedgerow-sidecar.ready" -}}
httpGet: {path: /healthz/ready, port: 15021, scheme: HTTP}
periodSeconds: {{ .period }}
failureThreshold: {{ .failures }}
successThreshold: 1
timeoutSeconds: 3
{{- end -}}

{{/* No container of ours holds a Kubernetes token: where the API server would put one, the trust bundle is mounted. */}}
{{- define "hedgerow-sidecar.noApiToken" -}}
{name: hedgerow-trust, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end -}}
