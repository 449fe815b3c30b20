# A Deployment's life: configuration, secret, init container, volume and probes; roll out, pause, undo, expose.
sed "s/30080/$((30081 + lane))/" demo/app.yaml | k apply -f -
k rollout status deployment web --timeout=60s
same "$(field deployment web .status.readyReplicas)" 3
same "$(k get pods -l app=web -o jsonpath='{.items[*].spec.nodeName}' | tr ' ' '\n' | sort -u | wc -l)" 2
same "$(columns "$(k get deployment -o wide)")" 'NAME READY UP-TO-DATE AVAILABLE AGE CONTAINERS IMAGES SELECTOR'
k scale deployment web --replicas=5
k rollout status deployment web --timeout=60s
k set env deployment web CHANGED=1 -c httpd
k annotate deployment web kubernetes.io/change-cause=changed
k rollout status deployment web --timeout=60s
has "$(k rollout history deployment web)" changed
has "$(k rollout history deployment web --revision=2)" 'CHANGED:'
k rollout undo deployment web
k rollout status deployment web --timeout=60s
k rollout pause deployment web
k set resources deployment web -c httpd --requests=cpu=11m
same "$(field deployment web .status.updatedReplicas)" ''
k rollout resume deployment web
k rollout status deployment web --timeout=60s
has "$(k get pods -l app=web -o jsonpath='{.items[*].spec.containers[0].resources.requests.cpu}')" 11m
k rollout restart deployment web
k rollout status deployment web --timeout=60s
has "$(k describe deployment web)" 'StrategyType:' RollingUpdate 'NewReplicaSet:'
k set image deployment web httpd=localhost:1/missing:2
eventually sh -c 'kubectl -n "$0" get pods -l app=web | grep -Eq "ErrImagePull|ImagePullBackOff"' "$ns"
k rollout undo deployment web
k rollout status deployment web --timeout=60s
k expose deployment web --name=again --port=80 --target-port=8080
eventually sh -c 'kubectl -n "$0" get endpointslice -l kubernetes.io/service-name=again -o jsonpath="{.items[0].endpoints[0].addresses[0]}" | grep -q 10.244' "$ns"
same "$(columns "$(k get service -o wide)")" 'NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE SELECTOR'
same "$(columns "$(k get endpointslice)")" 'NAME ADDRESSTYPE PORTS ENDPOINTS AGE'
k autoscale deployment web --min=1 --max=3 --cpu-percent=50 || k autoscale deployment web --min=1 --max=3 --cpu=50%
same "$(field hpa web .spec.maxReplicas)" 3
k delete deployment web --wait --timeout=60s
eventually sh -c '[ -z "$(kubectl -n "$0" get pods -l app=web -o name)" ]' "$ns"
