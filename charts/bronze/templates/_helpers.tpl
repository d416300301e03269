{{- define "bronze.name" -}}
{{- if contains "bronze" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-bronze{{ end }}
{{- end }}

{{- /* A dict of root and component: what a pod is found by. */}}
{{- define "bronze.selector" -}}
app.kubernetes.io/name: bronze
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "bronze.labels" -}}
{{ include "bronze.selector" . }}
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- /* The roles that run, and the port of each. */}}
{{- define "bronze.ports" -}}
api: 8000
consumer: 9464
{{- range $component, $port := dict "canary" 9466 "table" 9468 "notify" 9469 "retain" 9486 }}
{{- if (index $.Values $component).enabled }}
{{ $component }}: {{ $port }}
{{- end }}
{{- end }}
{{- end }}

{{- define "bronze.sources" -}}
{{ .Values.sources | default (.Files.Get "files/sources.toml") }}
{{- end }}

{{- /* The same as JSON. */}}
{{- define "bronze.declared" -}}
{{- $sources := include "bronze.sources" . | fromToml }}
{{- with $sources.Error }}
{{- fail (printf "sources is not TOML: %s" .) }}
{{- end }}
{{- toJson $sources }}
{{- end }}

{{- /* The most consumers that can work at the same time: lanes × sources. */}}
{{- define "bronze.lanes" -}}
{{- mul .Values.lanes (include "bronze.declared" . | fromJson | len) }}
{{- end }}

{{- define "bronze.consumersMax" -}}
{{- $lanes := include "bronze.lanes" . | int }}
{{- $chosen := .Values.consumer.autoscaling.maxReplicas | int }}
{{- if gt $chosen $lanes }}
{{- fail (printf "consumer.autoscaling.maxReplicas is %d, but only %d consumers can work at the same time (lanes × sources): set lanes to more, or maxReplicas to less" $chosen $lanes) }}
{{- end }}
{{- $chosen | default $lanes }}
{{- end }}

{{- define "bronze.apiScheme" -}}
{{ ternary "https" "http" (not (empty .Values.api.tlsSecret)) }}
{{- end }}

{{- define "bronze.apisMax" -}}
{{- if .Values.api.autoscaling.enabled }}{{ .Values.api.autoscaling.maxReplicas }}{{ else }}{{ .Values.api.replicas }}{{ end }}
{{- end }}

{{- /* Values that contradict each other; values.schema.json checks each alone. */}}
{{- define "bronze.check" -}}
{{- $values := .Values }}
{{- with $values.queue }}
{{- range $secret := list "caSecret" "certificateSecret" }}
{{- if and (get $values.queue $secret) (not (hasPrefix "tls://" $values.queue.url)) }}
{{- fail (printf "queue.%s is set: queue.url needs tls:// then" $secret) }}
{{- end }}
{{- end }}
{{- if and (contains "@" .url) .secret }}
{{- fail "queue.url contains a user: remove it, the roles have users of their own (queue.secret)" }}
{{- end }}
{{- end }}
{{- if ne (empty $values.api.tlsSecret) (empty $values.api.caSecret) }}
{{- fail "api.tlsSecret and api.caSecret belong together: set both, or none of them" }}
{{- end }}
{{- if and $values.telemetry.tempoUrl $values.telemetry.zipkinUrl }}
{{- fail "telemetry.tempoUrl and telemetry.zipkinUrl are both set: set the one that has the traces" }}
{{- end }}
{{- if and $values.canary.enabled (eq $values.api.auth "keys") (not $values.canary.apiKeySecret) }}
{{- fail "the canary needs an API key, since api.auth is keys: set canary.apiKeySecret, or canary.enabled to false" }}
{{- end }}
{{- range $variable := concat (keys $values.table.catalog) (keys $values.notify.environment) }}
{{- if regexMatch "CREDENTIAL|TOKEN|SECRET|PASSWORD|ACCESS_KEY|API_KEY" $variable }}
{{- fail (printf "%s is a secret: name it in the Secret of table.catalogSecret, or of notify.secret, and not in the values" $variable) }}
{{- end }}
{{- end }}
{{- if and $values.table.enabled (not $values.table.catalog) }}
{{- fail "table.enabled needs a catalog: set table.catalog, such as {URI: https://catalog.example.com, WAREHOUSE: s3://lake/}" }}
{{- end }}
{{- with $values.notify }}
{{- if and .enabled (not .webhookUrl) (not .environment) }}
{{- fail "notify.enabled needs a receiver: set notify.webhookUrl, or OPENLINEAGE_URL in notify.environment" }}
{{- end }}
{{- if and .enabled .webhookUrl (not .secret) }}
{{- fail "notify.webhookUrl needs secrets that sign its requests: set notify.secret, with the key BRONZE_WEBHOOK_SECRETS" }}
{{- end }}
{{- if and .enabled (eq $values.api.auth "keys") (not .apiKeySecret) }}
{{- fail "notify needs an API key, since api.auth is keys: set notify.apiKeySecret" }}
{{- end }}
{{- if and .enabled .tables (not $values.table.catalog) }}
{{- fail "notify.tables is true: set table.catalog" }}
{{- end }}
{{- end }}
{{- if and $values.retain.enabled (not $values.retain.days) }}
{{- $ages := list }}
{{- range include "bronze.declared" . | fromJson }}
{{- $ages = append $ages (get (ternary . dict (kindIs "map" .)) "retention_days") }}
{{- end }}
{{- if not (compact $ages) }}
{{- fail "retain.enabled needs an age: set retain.days, or retention_days of a source in sources" }}
{{- end }}
{{- end }}
{{- if and $values.monitoring.serviceMonitors (eq $values.api.auth "keys") (not $values.monitoring.apiKeySecret) }}
{{- fail "Prometheus needs an API key for the API's /metrics, since api.auth is keys: set monitoring.apiKeySecret" }}
{{- end }}
{{- range $role := list "api" "consumer" }}
{{- with (index $values $role).autoscaling }}
{{- $max := include (ternary "bronze.apisMax" "bronze.consumersMax" (eq $role "api")) $ | int }}
{{- if and .enabled (gt (int .minReplicas) $max) }}
{{- fail (printf "%s.autoscaling.minReplicas is %d, and its maximum %d" $role (int .minReplicas) $max) }}
{{- end }}
{{- end }}
{{- end }}
{{- with $values.consumer.autoscaling }}
{{- if and .enabled (eq .by "age") (not $values.telemetry.prometheusUrl) }}
{{- fail "consumer.autoscaling.by is age, which KEDA reads from Prometheus: set telemetry.prometheusUrl, or by to cpu" }}
{{- end }}
{{- $flush := $values.settings.BRONZE_FLUSH_AGE_S | default "15" | float64 }}
{{- if and .enabled (eq .by "age") (le (float64 .ageS) (addf $flush 2)) }}
{{- fail (printf "consumer.autoscaling.ageS is %v: messages wait up to BRONZE_FLUSH_AGE_S + 2 s (%v s) even if consumers are idle" .ageS (addf $flush 2)) }}
{{- end }}
{{- end }}
{{- if and (eq ($values.settings.BRONZE_CREATE_ONLY_MISSING | default "false" | lower) "true") (or $values.consumer.autoscaling.enabled (ne (int $values.consumer.replicas) 1)) }}
{{- fail "BRONZE_CREATE_ONLY_MISSING needs exactly one consumer: set consumer.replicas to 1, without autoscaling" }}
{{- end }}
{{- end }}

{{- /* A dict of root, component, user (of the queue), bucketSecret and tables (whether it uses their catalog): what every
container gets. */}}
{{- define "bronze.env" -}}
{{- $values := .root.Values }}
- {name: BRONZE_SOURCES, value: /etc/bronze/sources/sources.toml}
- {name: BRONZE_LANES, value: {{ $values.lanes | quote }}}
- {name: BRONZE_NATS_URL, value: {{ $values.queue.url | quote }}}
- {name: BRONZE_QUEUE_REPLICAS, value: {{ $values.queue.replicas | quote }}}
{{- with $values.queue.serverName }}
- {name: BRONZE_NATS_SERVER_NAME, value: {{ . | quote }}}
{{- end }}
{{- if and $values.queue.secret .user }}
- {name: BRONZE_NATS_USER, value: {{ .user }}}
- {name: BRONZE_NATS_PASSWORD_FILE, value: /etc/bronze/queue/password}
{{- end }}
{{- if $values.queue.caSecret }}
- {name: BRONZE_NATS_CA_FILE, value: /etc/bronze/queue-ca/ca.crt}
{{- end }}
{{- if $values.queue.certificateSecret }}
- {name: BRONZE_NATS_CERT_FILE, value: /etc/bronze/queue-certificate/tls.crt}
- {name: BRONZE_NATS_KEY_FILE, value: /etc/bronze/queue-certificate/tls.key}
{{- end }}
- {name: BRONZE_BUCKET, value: {{ $values.bucket.name | quote }}}
- {name: BRONZE_PREFIX, value: {{ $values.bucket.prefix | quote }}}
{{- with $values.bucket.endpoint }}
- {name: AWS_ENDPOINT_URL_S3, value: {{ . | quote }}}
{{- end }}
- {name: AWS_DEFAULT_REGION, value: {{ $values.bucket.region | quote }}}
{{- with .bucketSecret }}
- {name: AWS_ACCESS_KEY_ID, valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_ACCESS_KEY_ID}}}
- {name: AWS_SECRET_ACCESS_KEY, valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SECRET_ACCESS_KEY}}}
{{- end }}
{{- if $values.telemetry.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ $values.telemetry.endpoint | quote }}}
{{- with $values.telemetry.secret }}
- {name: COLLECTOR_OTLP_TOKEN, valueFrom: {secretKeyRef: {name: {{ . }}, key: token}}}
- {name: OTEL_EXPORTER_OTLP_HEADERS, value: Authorization=Bearer%20$(COLLECTOR_OTLP_TOKEN)}
{{- end }}
{{- else }}
{{- range $signal := list "TRACES" "METRICS" "LOGS" }}
- {name: OTEL_{{ $signal }}_EXPORTER, value: none}
{{- end }}
{{- end }}
{{- if has .component (list "api" "canary" "admin") }}
{{- range $name, $url := dict "PROMETHEUS" $values.telemetry.prometheusUrl "TEMPO" $values.telemetry.tempoUrl "ZIPKIN" $values.telemetry.zipkinUrl }}
{{- with $url }}
- {name: BRONZE_{{ $name }}_URL, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- end }}
{{- if has .component (list "retain" "admin") }}
{{- with $values.retain.days }}
- {name: BRONZE_RETENTION_DAYS, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- if .tables }}
{{- range $name, $value := $values.table.catalog }}
- {name: PYICEBERG_CATALOG__BRONZE__{{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}
{{- if has .component (list "canary" "notify" "admin") }}
- {name: BRONZE_API_URL, value: {{ include "bronze.apiScheme" .root }}://{{ include "bronze.name" .root }}-api:8000}
{{- if $values.api.caSecret }}
- {name: SSL_CERT_FILE, value: /etc/bronze/api-ca/ca.crt}
{{- end }}
{{- end }}
{{- range $name, $value := merge dict $values.environment $values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- /* The same dict. */}}
{{- define "bronze.envFrom" -}}
{{- if and .tables .root.Values.table.catalogSecret }}
- {prefix: PYICEBERG_CATALOG__BRONZE__, secretRef: {name: {{ .root.Values.table.catalogSecret }}}}
{{- end }}
{{- end }}

{{- /* For the API, its certificate; for those that call it, the authority that signed it. */}}
{{- define "bronze.apiSecret" -}}
{{- if .root.Values.api.tlsSecret }}
{{- if eq .component "api" }}api-certificate{{ else if has .component (list "canary" "notify" "admin") }}api-ca{{ end }}
{{- end }}
{{- end }}

{{- define "bronze.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: sources, mountPath: /etc/bronze/sources, readOnly: true}
{{- if and .root.Values.queue.secret .user }}
- {name: queue, mountPath: /etc/bronze/queue, readOnly: true}
{{- end }}
{{- if .root.Values.queue.caSecret }}
- {name: queue-ca, mountPath: /etc/bronze/queue-ca, readOnly: true}
{{- end }}
{{- if .root.Values.queue.certificateSecret }}
- {name: queue-certificate, mountPath: /etc/bronze/queue-certificate, readOnly: true}
{{- end }}
{{- with include "bronze.apiSecret" . }}
- {name: {{ . }}, mountPath: /etc/bronze/{{ . }}, readOnly: true}
{{- end }}
{{- end }}

{{- /* As bronze.env, with sourcesFrom, the ConfigMap of the sources. */}}
{{- define "bronze.volumes" -}}
- name: sources
  configMap: {name: {{ .sourcesFrom }}}
{{- if and .root.Values.queue.secret .user }}
- name: queue
  secret:
    secretName: {{ .root.Values.queue.secret }}
    defaultMode: 0440
    items: [{key: {{ .user }}, path: password}]
{{- end }}
{{- with .root.Values.queue.caSecret }}
- name: queue-ca
  secret: {secretName: {{ . }}, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- with .root.Values.queue.certificateSecret }}
- name: queue-certificate
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- $apiSecret := include "bronze.apiSecret" . }}
{{- if eq $apiSecret "api-certificate" }}
- name: api-certificate
  secret: {secretName: {{ .root.Values.api.tlsSecret }}, defaultMode: 0440}
{{- else if $apiSecret }}
- name: api-ca
  secret: {secretName: {{ .root.Values.api.caSecret }}, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- end }}

{{- define "bronze.image" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "bronze.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false # its variables would be taken for settings: BRONZE_API_PORT
securityContext:
  runAsNonRoot: true
  runAsUser: 10000
  runAsGroup: 10000
  fsGroup: 10000
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}
