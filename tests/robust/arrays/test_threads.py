from __future__ import annotations

import threading

import numpy as np
import threadpoolctl

from scarcity_ray.robust import one_blas_thread


def test_one_blas_thread_inside_the_guard_and_the_earlier_number_after_it():
    def threads():
        return [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]

    np.ones((2, 2)) @ np.ones((2, 2))
    before = threads()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with one_blas_thread():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with one_blas_thread():
        thread.start()
        inside.wait(10)
        with one_blas_thread():
            assert set(threads()) == {1}
    assert set(threads()) == {1}
    leave.set()
    thread.join()
    assert threads() == before
