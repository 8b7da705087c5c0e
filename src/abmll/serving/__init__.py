"""A language model in memory, the learned tasks of many people, and an interface to both over the network.

``service`` puts the parts together: a store of tasks (``task_store``, ``task_changes``, ``job_store``), what was
learned of them (``posterior_files``, ``memory``), the threads that read with the model (``engine``), jobs that learn
(``jobs``, ``teacher``), and answers (``answerer``, ``answer_store``). ``app`` is the HTTP interface around it, ``page``
the page in a browser, ``client`` the other end.

Not here: learning or prediction itself, which ``model`` does.
Start with ``service``, then follow a request from ``answer_routes`` through ``answerer`` into ``engine``.
"""
