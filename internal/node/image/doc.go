// Package image is the image table: it says what an image's configuration would say, for a runtime that pulls nothing.
//
// In goes a YAML file (--images of `endpointd up` and `endpointd node`) that maps image names, with wildcards, to an
// entrypoint, arguments, environment, working directory, user and, optionally, a directory that becomes the root:
//
//	images:
//	- name: "postgres:*"
//	  entrypoint: [/usr/lib/postgresql/17/bin/postgres]
//	  args: [-D, /data]
//	  env:
//	  - {name: PGPORT, value: "5432"}
//	  workingDir: /data
//	  user: postgres
//	- name: "registry.example.com/**"
//	  rootfs: /srv/root
//	  entrypoint: [/bin/app]
//
// Out comes a [Table] that answers Lookup. A table never changes: a new file is a new table, and whoever holds the old one
// keeps it whole.
//
// Names are compared as a container engine would: nginx, nginx:latest and docker.io/library/nginx:latest are one name,
// and a name without a tag is the tag latest. In a table's name
//
//   - a ? is any one character but "/";
//   - a * is any characters but "/", also none;
//   - a ** is any characters, "/" included; alone it is every image;
//   - a name without a tag is the tag latest, as everywhere, so every version of postgres is "postgres:*";
//   - a tag of * also matches an image that is named by digest alone; a digest in the table must match the image's.
//
// Of several names that match, one without wildcards wins, then the one with the most characters that are no wildcards, then
// the one that comes first in the file. endpointd/echo, in every version, is in each table: the echo server that is part
// of the program.
//
// The package refuses files that say something it does not know, twice the same name, and roots that are not there: what is
// wrong with a table is said when it is read, not when a pod starts. It runs nothing and watches nothing.
// Test it with tables of names and images; parsing is fuzzed.
package image
