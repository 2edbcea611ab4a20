"""The marker ``virtual_time``, as the user of pytest sees it."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]


def test_a_marked_test_runs_on_virtual_time(pytester, run_pytest):
    pytester.makepyfile(
        """
        import asyncio, pytest

        @pytest.mark.virtual_time
        async def test_a_month():
            await asyncio.sleep(30 * 86_400)
            assert asyncio.get_running_loop().time() == 30 * 86_400

        async def test_real_time():
            assert asyncio.get_running_loop().time() != 0
            assert type(asyncio.get_running_loop()).__name__ != "VirtualClockLoop"
        """
    )
    run_pytest().assert_outcomes(passed=2)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_a_marked_test_runs_once_whatever_the_mode_of_pytest_asyncio(pytester, run_pytest, mode):
    pytester.makepyfile(
        """
        import pytest

        runs = []

        @pytest.mark.virtual_time
        async def test_runs():
            runs.append("run")

        def test_ran_once():
            assert runs == ["run"]
        """
    )
    run_pytest("--asyncio-mode", mode).assert_outcomes(passed=2)


def test_a_marked_test_needs_no_other_plugin(pytester, run_pytest):
    pytester.makeini("[pytest]\nfilterwarnings = error")
    pytester.makepyfile(
        """
        import asyncio, pytest

        @pytest.mark.virtual_time
        async def test_a_day():
            await asyncio.sleep(86_400)
        """
    )
    run_pytest("-p", "no:asyncio").assert_outcomes(passed=1)


def test_the_marker_may_stand_on_classes_and_modules_or_be_added_late(pytester, run_pytest):
    pytester.makeconftest(
        """
        def pytest_collection_modifyitems(items):
            for item in items:
                if item.name == "test_late":
                    item.add_marker("virtual_time")
        """
    )
    virtual = "assert type(asyncio.get_running_loop()).__name__ == 'VirtualClockLoop'"
    pytester.makepyfile(
        test_module=f"""
        import asyncio, pytest

        pytestmark = pytest.mark.virtual_time

        async def test_plain():
            {virtual}

        def test_sync():
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
        """,
        test_class=f"""
        import asyncio, pytest

        @pytest.mark.virtual_time
        class TestAll:
            async def test_method(self):
                {virtual}

            @staticmethod
            async def test_static():
                {virtual}
        """,
        test_late=f"""
        import asyncio

        async def test_late():
            {virtual}
        """,
    )
    run_pytest().assert_outcomes(passed=5)


def test_a_marked_test_takes_parameters_and_plain_fixtures(pytester, run_pytest):
    pytester.makepyfile(
        """
        import asyncio, pytest

        ended = []

        @pytest.fixture
        def delay():
            yield 3600
            ended.append("fixture")

        @pytest.mark.virtual_time
        @pytest.mark.parametrize("times", [1, 2])
        async def test_wait(times, delay, tmp_path):
            await asyncio.sleep(times * delay)
            assert asyncio.get_running_loop().time() == times * 3600
            assert tmp_path.is_dir()

        def test_fixtures_ended():
            assert ended == ["fixture", "fixture"]
        """
    )
    run_pytest().assert_outcomes(passed=3)


def test_a_marked_test_works_with_hypothesis(pytester, run_pytest):
    pytest.importorskip("hypothesis")
    pytester.makepyfile(
        """
        import asyncio, pytest
        from hypothesis import given, settings, strategies as st

        seen = []

        @pytest.mark.virtual_time
        @settings(max_examples=10, database=None)
        @given(seconds=st.integers(1, 1000))
        async def test_wait(seconds):
            await asyncio.sleep(seconds)
            assert asyncio.get_running_loop().time() == seconds
            seen.append(seconds)

        def test_examples():
            assert len(seen) == 10

        @pytest.mark.virtual_time
        @settings(max_examples=100, database=None)
        @given(seconds=st.integers(1, 1000))
        async def test_fails(seconds):
            await asyncio.sleep(seconds)
            assert seconds < 500
        """
    )
    result = run_pytest()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*seconds=500*"])


def test_the_marker_sets_the_clock_and_the_limit(pytester, run_pytest):
    pytester.makepyfile(
        """
        import asyncio, pytest

        @pytest.mark.virtual_time(start=1000.0)
        async def test_start():
            assert asyncio.get_running_loop().time() == 1000.0

        @pytest.mark.virtual_time(max_steps=50)
        async def test_limit():
            for _ in range(100):
                await asyncio.sleep(1)

        @pytest.mark.virtual_time(1000.0)
        async def test_wrong():
            pass
        """
    )
    result = run_pytest()
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*DeadlockError: no end after 5? steps*"])
    result.stdout.fnmatch_lines(["*virtual_time takes keyword arguments only*"])


def test_a_marked_test_that_hangs_fails_and_shows_where(pytester, run_pytest):
    pytester.makepyfile(
        """
        import asyncio, pytest

        @pytest.mark.virtual_time
        async def test_hang():
            await asyncio.Event().wait()
        """
    )
    result = run_pytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*DeadlockError: nothing will ever happen*", "*test_hang*Event.wait*"])


def test_a_marked_test_that_leaves_tasks_behind_fails_and_names_them(pytester, run_pytest):
    pytester.makepyfile(
        """
        import asyncio, pytest

        @pytest.mark.virtual_time
        async def test_forget():
            test_forget.task = asyncio.create_task(asyncio.sleep(60), name="the forgotten one")
        """
    )
    result = run_pytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*LeftoverError: 1 task is left over", "*the forgotten one: *"])


def test_a_marked_test_that_does_not_await_a_coroutine_fails(pytester, run_pytest):
    pytester.makepyfile(
        """
        import asyncio, pytest

        @pytest.mark.virtual_time
        async def test_forget():
            asyncio.sleep(1)

        @pytest.mark.virtual_time
        async def test_forget_in_a_cycle():
            cycle = [asyncio.sleep(1)]
            cycle.append(cycle)

        @pytest.mark.virtual_time
        async def test_other():
            pass
        """
    )
    result = run_pytest()
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(["*'sleep' was never awaited*"])


def test_failures_skips_and_expected_failures_are_what_they_always_are(pytester, run_pytest):
    pytester.makepyfile(
        """
        import asyncio, pytest

        pytestmark = pytest.mark.virtual_time

        async def test_fails():
            await asyncio.sleep(1)
            left, right = 1, 2
            assert left == right

        async def test_skips():
            pytest.skip("not today")

        @pytest.mark.xfail(strict=True)
        async def test_expected():
            assert False
        """
    )
    result = run_pytest()
    result.assert_outcomes(failed=1, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(["E       assert 1 == 2"])


def test_an_async_fixture_is_refused_since_it_would_run_on_another_loop(pytester, run_pytest):
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        async def connection():
            return object()

        @pytest.mark.virtual_time
        async def test_it(connection):
            pass
        """
    )
    result = run_pytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*its fixture 'connection' is async*"])


def test_the_marker_is_registered(pytester, run_pytest):
    result = run_pytest("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.virtual_time(start=0.0, max_steps=500_000): *"])
