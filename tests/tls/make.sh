#!/bin/sh
# Makes the certificates of tests/tls.rs: a CA and what it has signed for loopback, for another name and in the past; another CA of
# the same name and its certificate for loopback. The keys protect nothing.
set -e
cd "$(dirname "$0")"
cat >ca.conf <<'END'
[ca]
default_ca = test
[test]
database = index
new_certs_dir = .
serial = serial
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
END
new_ca() {
    openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
    openssl req -new -x509 -key "$1.key" -days 36500 -subj "/CN=graphtool test CA" -out "$1.pem" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
}
# NAME CA SAN END
new_cert() {
    openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1.key"
    openssl req -new -key "$1.key" -subj "/CN=$1" -addext "subjectAltName=$3" -out csr
    openssl ca -batch -notext -config ca.conf -rand_serial -cert "$2.pem" -keyfile "$2.key" -in csr -out "$1.pem" -startdate 20200101000000Z -enddate "$4"
}
: >index
new_ca ca
new_ca other-ca
new_cert here ca DNS:localhost,IP:127.0.0.1,IP:::1 21200101000000Z
new_cert elsewhere ca DNS:elsewhere.example 21200101000000Z
new_cert expired ca DNS:localhost,IP:127.0.0.1 20210101000000Z
new_cert stranger other-ca DNS:localhost,IP:127.0.0.1 21200101000000Z
find . -name '[0-9A-F]*.pem' -delete
rm -f csr ca.conf index index.* serial serial.old ca.key other-ca.key
