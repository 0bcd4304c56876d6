{{/*
The containers that `hedgerow inject` makes, field by field; e2e/apiserver/test_sidecar_chart.py compares the two.

    spec:
      template:
        metadata:
          labels: {{- include "hedgerow-sidecar.labels" . | nindent 12 }}
        spec:
          initContainers: {{- include "hedgerow-sidecar.initContainers" . | nindent 12 }}
          volumes: {{- include "hedgerow-sidecar.volumes" . | nindent 12 }}

Own init containers stand behind them: they are captured, and have the mesh. The namespace needs the label
hedgerow.dev/injection=enabled, by which the controller keeps the trust bundle there.
*/}}

{{/* The webhook leaves these pods as they are. */}}
{{- define "hedgerow-sidecar.labels" -}}
hedgerow.dev/injection: disabled
{{- end -}}

{{- define "hedgerow-sidecar.initContainers" -}}
{{- $values := index .Values "hedgerow-sidecar" -}}
- name: hedgerow-capture
  {{- include "hedgerow-sidecar.base" (dict "root" . "values" $values "resources" $values.captureResources "whole" false) | nindent 2 }}
  command: [python, -m, sidecar, capture, --config-env, HEDGEROW_SIDECAR]
  securityContext:
    {{- include "hedgerow-sidecar.security" 0 | nindent 4 }}
    runAsNonRoot: false
    capabilities: {add: [NET_ADMIN], drop: [ALL]}
  volumeMounts: [{{ include "hedgerow-sidecar.noApiToken" . }}]
{{- if $values.validation }}
- name: hedgerow-validation
  {{- include "hedgerow-sidecar.base" (dict "root" . "values" $values "resources" $values.captureResources "whole" false) | nindent 2 }}
  command: [python, -m, sidecar, capture, --check, --config-env, HEDGEROW_SIDECAR]
  securityContext:
    {{- include "hedgerow-sidecar.security" 65534 | nindent 4 }}
    runAsNonRoot: true
    capabilities: {drop: [ALL]}
  volumeMounts: [{{ include "hedgerow-sidecar.noApiToken" . }}]
{{- end }}
- name: hedgerow-sidecar
  {{- include "hedgerow-sidecar.base" (dict "root" . "values" $values "resources" $values.resources "whole" true) | nindent 2 }}
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
    - {{ include "hedgerow-sidecar.noApiToken" . }}
{{- end -}}

{{- define "hedgerow-sidecar.volumes" -}}
- name: hedgerow-token
  projected:
    defaultMode: 0644
    sources:
      - serviceAccountToken: {audience: hedgerow-controller, expirationSeconds: 600, path: token}
- name: hedgerow-trust
  configMap: {name: hedgerow-trust, defaultMode: 0644}
- name: hedgerow-state
  emptyDir: {sizeLimit: 64Mi}
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
resources: {{- toYaml .resources | nindent 2 }}
terminationMessagePath: /dev/termination-log
terminationMessagePolicy: FallbackToLogsOnError
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
{{- $given := toRawJson .values.settings | replace "$" "$$" | fromJson -}}
{{- if not .whole -}}
{{- $given = omit $given "probes" "merge_metrics" "metrics" "inspect" "http" "limits" -}}
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
{{- toRawJson (merge $made $given) -}}
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
