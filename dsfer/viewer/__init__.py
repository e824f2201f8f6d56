"""A page in the browser that shows what `dsfer predict` wrote, from a server on this machine."""
