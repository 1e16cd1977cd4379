"""Lakes that lie elsewhere: a shared folder, or an object store that machines mirror."""
