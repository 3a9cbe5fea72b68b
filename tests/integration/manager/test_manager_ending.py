"""A manager that is to end its servers leaves none, however early it is told."""

from manager_parts import House


async def test_a_server_that_is_just_being_launched_is_ended_with_its_manager(house: House) -> None:
    for _ in range(5):
        async with house.managed() as api:
            await api.start(house.task_id)
        assert house.servers() == []
