# Databases from their SQL, and a repository of the changes that wait for a release.
set -e
for name in ledger tracker; do
  if [ -f "$name.sql" ]; then
    sqlite3 "$name.db" < "$name.sql"
    rm "$name.sql"
  fi
done
if [ -d changes ]; then
  git init -q -b main .
  git add -A
  git commit -qm "Changes that wait for a release"
fi
