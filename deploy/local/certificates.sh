#!/bin/sh
# Certificates for a cluster of one's own, and the configuration of Dask that uses them: certificates.sh FOLDER [DAYS]
# Whoever has cert.pem and key.pem may run code on the cluster. Copy them to its hosts alone; ca.key stays here.
set -eu
umask 077
mkdir -p "$1"
cd "$1"
days=${2:-365}
openssl req -newkey rsa:3072 -nodes -x509 -days "$days" -subj /CN=nmf-dask-ca -keyout ca.key -out ca.pem
openssl req -newkey rsa:3072 -nodes -subj /CN=nmf-dask -keyout key.pem -out request.pem
openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days "$days" -out cert.pem
rm -f request.pem ca.srl
cat > dask.yaml << END
distributed:
  comm:
    require-encryption: true
    tls:
      ca-file: $PWD/ca.pem
      scheduler: {cert: $PWD/cert.pem, key: $PWD/key.pem}
      worker: {cert: $PWD/cert.pem, key: $PWD/key.pem}
      client: {cert: $PWD/cert.pem, key: $PWD/key.pem}
END
