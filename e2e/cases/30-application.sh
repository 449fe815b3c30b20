# The demo: a Deployment with configuration, secret, init container, volume and probes.
kubectl apply -f demo/app.yaml
kubectl rollout status deployment web --timeout=60s
same "$(kubectl get deployment web -o jsonpath='{.status.readyReplicas}')" 3
nodes=$(kubectl get pods -l app=web -o jsonpath='{.items[*].spec.nodeName}' | tr ' ' '\n' | sort -u | wc -l)
same "$nodes" 2
kubectl scale deployment web --replicas=5
kubectl rollout status deployment web --timeout=60s
kubectl set env deployment web CHANGED=1 -c httpd
kubectl rollout status deployment web --timeout=60s
kubectl rollout undo deployment web
kubectl rollout status deployment web --timeout=60s
kubectl delete -f demo/app.yaml --wait --timeout=60s
eventually sh -c '[ -z "$(kubectl get pods -l app=web -o name)" ]'
