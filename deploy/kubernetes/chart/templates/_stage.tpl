{{/* SPDX-License-Identifier: Apache-2.0 */}}
{{- define "hauberk.labels" -}}
app.kubernetes.io/name: hauberk
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .stage }}
{{- end }}

{{- define "hauberk.selector" -}}
{{ include "hauberk.labels" . | fromYaml | toJson }}
{{- end }}

{{- define "hauberk.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "hauberk.bus" -}}
{{- $bootstrap := .Values.kafka.bootstrap | default (printf "%s-kafka.%s.svc:9092" .Release.Name .Release.Namespace) -}}
{{- merge (dict "type" "kafka" "bootstrap" $bootstrap) .Values.kafka.settings | toJson -}}
{{- end }}

{{/* Environment that every role has. */}}
{{- define "hauberk.env" -}}
- {name: HAUBERK_CONFIG, value: /etc/hauberk/settings.yaml}
- {name: HAUBERK__METRICS__HOST, value: "::"}
- {name: HAUBERK__METRICS__PORT, value: "9644"}
{{- end }}

{{- define "hauberk.volumes" -}}
- {name: settings, configMap: {name: {{ .root.Release.Name }}-settings}}
- {name: tmp, emptyDir: {sizeLimit: 64Mi}}
{{- with .root.Values.kafka.secretName }}
- {name: kafka, secret: {secretName: {{ . }}, defaultMode: 0440}}
{{- end }}
{{- end }}

{{- define "hauberk.mounts" -}}
- {name: settings, mountPath: /etc/hauberk/settings.yaml, subPath: settings.yaml, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .root.Values.kafka.secretName }}
- {name: kafka, mountPath: /etc/hauberk/kafka, readOnly: true}
{{- end }}
{{- end }}

{{- define "hauberk.probes" -}}
ports:
  - {name: metrics, containerPort: 9644}
  {{- range $name, $port := .ports }}
  - {name: {{ $name }}, containerPort: {{ $port }}}
  {{- end }}
livenessProbe: {httpGet: {path: /healthz, port: metrics}, initialDelaySeconds: 30, periodSeconds: 30, timeoutSeconds: 10, failureThreshold: 4}
readinessProbe: {httpGet: {path: /readyz, port: metrics}, periodSeconds: 10, timeoutSeconds: 10}
{{- end }}

{{/* What a container of a role may: nothing. */}}
{{- define "hauberk.nothing" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "hauberk.pod" -}}
serviceAccountName: {{ .root.Release.Name }}-{{ .account }}
automountServiceAccountToken: {{ .token | default false }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
securityContext: {runAsNonRoot: true, runAsUser: 10001, runAsGroup: 10001, fsGroup: 10001, seccompProfile: {type: RuntimeDefault}}
terminationGracePeriodSeconds: 30
{{- end }}
